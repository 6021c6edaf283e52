"""Who makes the units, and how: threads, processes, a cluster."""
