"""The embedded default: a small teacher, a corpus on every machine, and the ordinary commands."""
