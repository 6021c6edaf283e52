"""What a training run keeps and tells: checkpoints, its directory, its figures."""
