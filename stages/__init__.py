"""The two stages. They never import each other: a cache directory is all that lies between them."""
