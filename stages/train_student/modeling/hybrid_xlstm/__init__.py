"""Hybrid xLSTM (arXiv 2603.15590): the teacher with mLSTM and a window instead of attention."""
