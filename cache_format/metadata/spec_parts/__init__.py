"""What a cache's spec says of its teacher, corpus, targets and sketch."""
