"""What tests share: small models, corpora and caches, and faults to inject."""

from pathlib import Path

ROOT = Path(__file__).parents[2]
"""Of the repository."""
