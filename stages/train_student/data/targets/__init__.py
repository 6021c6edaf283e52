"""The kinds of target that a student learns from, a module each: rows to tensors to the loss."""
