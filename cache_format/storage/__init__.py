"""Where a cache lies: a local directory, or a URL; nothing here knows what a cache holds."""
