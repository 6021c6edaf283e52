"""The rows of a cache as batches, in an order that is a pure function of seed, epoch and step."""
