"""The teacher: files become a model, rows of ids become hidden states."""
