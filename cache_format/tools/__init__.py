"""What is done with whole caches: verify, archive, merge, export."""
