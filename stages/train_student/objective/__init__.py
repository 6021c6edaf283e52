"""What is minimised: cross-entropy, KL and the Frobenius term, and their schedules."""
