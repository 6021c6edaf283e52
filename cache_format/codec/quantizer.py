"""Probabilities in levels: the fourth root on an even grid.

A logit that is off by up to Δ/2 costs about p Δ²/24 nats of Kullback-Leibler divergence at
temperature 1, and √p/Z₂ · Δ²/96 at temperature 2, where Z₂ is Σ√p over the vocabulary. Steps that
grow like p^(−1/2) are best for the one, like p^(−1/4) for the other. Even steps δ of p^(1/4) are
Δ = 4δ p^(−1/4), and cost (2/3) δ² Σ√p over the kept entries and (1/6) δ² K/Z₂ for K of them.

In: log-probabilities. Out: levels, 0 for probability 1, and back. Shapes: M numbers.
"""

import numpy as np
from numpy.typing import NDArray


def to_levels(logprobs: NDArray[np.float64], num_levels: int) -> NDArray[np.int64]:
    """Levels from 0 to ``num_levels`` of log-probabilities ≤ 0, [M]."""
    roots = np.exp(logprobs * 0.25)
    return np.clip(np.rint((1.0 - roots) * num_levels), 0, num_levels).astype(np.int64)


def logprobs_of_levels(num_levels: int) -> NDArray[np.float64]:
    """The log-probability that each level stands for, [num_levels + 1].

    The last level holds all p^(1/4) below half a step; it stands for a quarter of a step.
    """
    steps = np.arange(num_levels, -1, -1, dtype=np.float64)
    steps[-1] = 0.25
    return 4.0 * np.log(steps / num_levels)


def ceilings_of_levels(num_levels: int) -> NDArray[np.float64]:
    """The largest log-probability that each level is written for, [num_levels + 1]."""
    steps = np.arange(num_levels, -1, -1, dtype=np.float64) + 0.5
    return 4.0 * np.log(np.minimum(steps / num_levels, 1.0))
