"""Validation: how far a student is from the text and from its teacher."""
