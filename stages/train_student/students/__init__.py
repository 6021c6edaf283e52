"""Kinds of students: what the rest of stage two asks of any of them."""
