"""What a run saves and reads back."""
