"""What is stored as the rounded coefficients of a transform of the cache."""
