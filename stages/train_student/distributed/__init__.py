"""The processes of a run, as torchrun starts them, and tensors that they share."""
