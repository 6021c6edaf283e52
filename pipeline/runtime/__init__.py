"""What surrounds a command: signals, failures, exit codes."""
