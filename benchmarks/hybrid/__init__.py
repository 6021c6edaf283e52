"""Hybrid students: what they keep of their teacher, and their speed beside it."""
