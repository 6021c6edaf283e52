"""The training loop: optimizer steps, precision, run directory, stop and resume."""
