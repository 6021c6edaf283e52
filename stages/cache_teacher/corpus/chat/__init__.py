"""Conversations: a template renders them, the teacher's tokenizer reads what it rendered."""
