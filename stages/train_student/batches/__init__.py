"""The cache's rows as batches, in an order that is a function of the step."""
