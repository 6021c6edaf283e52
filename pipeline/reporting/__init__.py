"""What a running command reports: to the terminal, to a log file, as JSON on standard output."""
