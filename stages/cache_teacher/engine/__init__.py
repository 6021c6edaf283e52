"""Where the units are made: in threads, processes or a cluster."""
