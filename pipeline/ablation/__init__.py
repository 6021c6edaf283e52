"""Sweeps: many trainings of students from one cache, planned, checked and run as one command."""
