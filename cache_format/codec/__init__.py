"""A row of arrays as the cells of a record batch, and back: pure functions."""
