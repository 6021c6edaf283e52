"""Which cache a run fills, and with what: identity, precision, batch size, reference check."""
