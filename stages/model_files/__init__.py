"""Model directories that anyone may have written: weights and tokenizers, as data."""
