"""The colours of groups, on light and on dark ground, and what follows where they run out."""

LIGHT_COLOURS = (
    *("#0969da", "#bc4c00", "#1a7f37", "#8250df"),
    *("#cf222e", "#0a7d8c", "#9a6700", "#bf3989"),
)
DARK_COLOURS = (
    *("#58a6ff", "#f0883e", "#3fb950", "#bc8cff"),
    *("#ff7b72", "#39c5cf", "#d29922", "#f778ba"),
)
NUM_COLOURS = len(LIGHT_COLOURS)
NUM_DASHES = 4
"""Kinds of dashes, the first of which is a whole line."""
