"""Distil-xLSTM (arXiv 2503.18565): xLSTM blocks between the teacher's embedding and head."""
