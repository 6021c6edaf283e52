"""Processes that train the runs of a sweep, and what becomes of them."""
