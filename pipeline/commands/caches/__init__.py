"""The commands about a cache that exists: look at it, check it, move and extend it."""
