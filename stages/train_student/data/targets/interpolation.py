"""Interpolate what a cache holds at a few inverse temperatures."""

import math
from collections.abc import Sequence

from stages.train_student.data.temperatures import covers


def lagrange_weights(inverse_temperatures: Sequence[float], s: float) -> list[float]:
    """Weights of the nodes' values in the interpolating polynomial at ``s``.

    The log-mass of the tail is a smooth function of 1/T, so a few nodes give it within 0.002 nats
    anywhere between them (Berrut and Trefethen, SIAM Review 46, 2004). Raises ValueError outside
    of the nodes, where that no longer holds.
    """
    if not covers(inverse_temperatures, 1 / s):
        raise ValueError(
            f"temperature {1 / s:g} lies outside of what the cache holds, "
            f"{1 / inverse_temperatures[-1]:g} to {1 / inverse_temperatures[0]:g}. Choose "
            "temperatures within, or make a cache with more cache_teacher.inverse_temperatures."
        )
    return [
        math.prod((s - other) / (one - other) for other in inverse_temperatures if other != one)
        for one in inverse_temperatures
    ]
