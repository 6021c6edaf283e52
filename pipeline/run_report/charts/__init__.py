"""Curves of runs: as data, as SVG for a page, as PNG."""
