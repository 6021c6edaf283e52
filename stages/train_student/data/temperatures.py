"""The temperatures at which a cache gives its teacher's distribution. Imports nothing heavy."""

import math
from collections.abc import Callable, Mapping, Sequence

from cache_format.errors import AdvisedError, NextStep
from cache_format.metadata.spec_parts.targets import TargetSpec

SAME = 1e-6
"""Temperatures in a recipe have few digits: 1.333333 is meant to be 4/3."""


def covers(nodes: Sequence[float], temperature: float) -> bool:
    """Whether 1/T lies within ``nodes``, the cache's inverse temperatures; without any, all do."""
    return not nodes or nodes[0] - SAME <= 1 / temperature <= nodes[-1] + SAME


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


def validation_temperature(nodes: Sequence[float]) -> float:
    """T that validation takes KL at: 1, or of a cache of samples the one they were drawn at."""
    return 1 / nodes[-1] if nodes else 1.0


def require_temperature(targets: TargetSpec, key: str, asked: float) -> None:
    """Raise ValueError unless a student can learn from these targets at temperature ``asked``.

    ``key`` is the setting that asks for it.
    """
    if not covers(targets.inverse_temperatures, asked):
        raise _ERRORS.get(targets.kind, _outside_of_range)(targets, key, asked)


def _outside_of_range(targets: TargetSpec, key: str, asked: float) -> ValueError:
    hottest, coldest = 1 / targets.inverse_temperatures[0], 1 / targets.inverse_temperatures[-1]
    return ValueError(
        f"train_student.{key}: the cache holds temperatures from {coldest:g} to {hottest:g}, "
        f"the recipe asks for {asked:g}. Change it, or make a cache with more "
        "cache_teacher.inverse_temperatures."
    )


def _not_that_of_samples(targets: TargetSpec, key: str, asked: float) -> ValueError:
    drawn_at = 1 / targets.inverse_temperatures[0]
    return AdvisedError(
        f"train_student.{key}: the cache holds samples that were drawn at temperature "
        f"{drawn_at:g} and are valid at no other, but the recipe asks for {asked:g}.",
        NextStep(
            f"Set temperature_start and temperature_end to {drawn_at!r}, or make a cache "
            "with cache_teacher.targets 'top_k' or 'top_k+sampled'.",
            settings={
                "train_student.temperature_start": drawn_at,
                "train_student.temperature_end": drawn_at,
            },
        ),
    )


_ERRORS: Mapping[str, Callable[[TargetSpec, str, float], ValueError]] = {
    "sampled": _not_that_of_samples,
}
"""What is said of a temperature outside of the cache's, where a kind has a reason of its own."""
