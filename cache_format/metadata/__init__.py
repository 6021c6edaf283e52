"""What a cache says of itself: spec, manifest, receipts, and the tables that they name."""
