"""Tables that all shards share: ids by frequency, projections, the transform of states."""
