"""What is kept of a teacher: logits and hidden states become targets, sketches and rows."""
