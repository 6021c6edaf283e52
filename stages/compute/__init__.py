"""Devices, and what runs on them: the same for both stages."""
