"""What this machine has, and what each recipe would run on it: ``pipeline doctor``."""
