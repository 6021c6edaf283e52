"""Text: a corpus becomes units, units become rows of token ids."""
