"""What is done with a trained student: generate, evaluate, upload."""
