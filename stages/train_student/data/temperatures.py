"""At which temperatures a cache knows its teacher's distribution. Imports nothing heavy."""

from collections.abc import Sequence

SAME = 1e-6
"""Temperatures in a recipe have few digits: 1.333333 is meant to be 4/3."""


def covers(nodes: Sequence[float], temperature: float) -> bool:
    """Whether 1/T lies within ``nodes``, the cache's inverse temperatures."""
    return nodes[0] - SAME <= 1 / temperature <= nodes[-1] + SAME


def validation_temperature(nodes: Sequence[float]) -> float:
    """T that validation takes KL at: 1, or of a cache of samples the one they were drawn at."""
    return 1 / nodes[-1]
