"""One file for each format of a corpus; ``registry`` has them by the endings of file names."""
