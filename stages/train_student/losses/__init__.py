"""What is minimized: cross-entropy, KL and hidden-state terms, and their schedules."""
