"""What a run reports: metrics, trackers, throughput, progress."""
