"""Runs as their directories record them, grouped over seeds."""
