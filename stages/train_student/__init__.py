"""Stage two: an xLSTM student is trained from a cache alone."""
