"""What commands say of caches, as JSON and as text."""
