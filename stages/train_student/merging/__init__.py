"""Students of one origin become one: a weighted sum of their weights (arXiv 2603.15590, eq. 14)."""
