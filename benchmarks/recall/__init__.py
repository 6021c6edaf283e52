"""Relational recall: what mixers of tokens can look up, trained from scratch."""
