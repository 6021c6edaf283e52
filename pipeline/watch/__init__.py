"""Runs and sweeps as they go on, in a terminal, read from the files that they write."""
