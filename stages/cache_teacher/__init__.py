"""Stage one: a teacher reads a corpus once and writes its targets into a cache."""
