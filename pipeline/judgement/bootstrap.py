"""How much of a judgement is chance: percentile bands of α* and C_α by bootstrap.

Two questions, each with its own band. Over benchmarks: what if another set of this kind had been
chosen? N of the N are drawn with replacement. Over items: what if the benchmarks had other
questions? The items of each are drawn with replacement, the same ones for student and teacher, who
answered the same questions; a benchmark whose items were not logged keeps its scores.

N benchmarks, R resamples, I items of a benchmark, G tolerances.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline.judgement.win_and_tie import (
    Floats,
    critical_tolerances,
    needed_tolerances,
    win_and_tie_rates,
)

_MOST_DRAWS = 1 << 21  # of items at once: 16 MB of indices


@dataclass(frozen=True, kw_only=True)
class BootstrapOptions:
    """How a band is drawn."""

    num_resamples: int = 2000
    level: float = 0.95
    """Share of the resamples inside of a band."""
    seed: int = 0

    def __post_init__(self) -> None:
        if self.num_resamples < 1:
            raise ValueError(f"num_resamples: expected at least 1, found {self.num_resamples}")
        if not 0 < self.level < 1:
            raise ValueError(f"level: expected a share between 0 and 1, found {self.level}")


@dataclass(frozen=True, kw_only=True)
class Band:
    """What the resamples say."""

    alpha_star: tuple[float, float]
    """Its lower and upper bound."""
    rates: tuple[Floats, Floats]
    """Bounds of C_α at the tolerances that were asked for, [G] each."""
    lossless_share: float
    """Share of the resamples with C_0 ≥ 1/2."""


@dataclass(frozen=True, kw_only=True)
class PairedItems:
    """What student and teacher scored on the same items of a benchmark, [I] each."""

    student: Floats
    teacher: Floats


def resample_benchmarks(tolerances_N: Floats, options: BootstrapOptions) -> Floats:
    """Needed tolerances of drawn sets of benchmarks, [R, N]."""
    random = np.random.default_rng(options.seed)
    size = len(tolerances_N)
    drawn_RN: Floats = tolerances_N[random.integers(0, size, (options.num_resamples, size))]
    return drawn_RN


def resample_items(
    student_N: Floats,
    teacher_N: Floats,
    items: Sequence[PairedItems | None],
    options: BootstrapOptions,
) -> Floats:
    """Needed tolerances with the items of each benchmark drawn anew, [R, N]."""
    random = np.random.default_rng(options.seed)
    student_RN = np.tile(student_N, (options.num_resamples, 1))
    teacher_RN = np.tile(teacher_N, (options.num_resamples, 1))
    for column, paired in enumerate(items):
        if paired is not None:
            student_RN[:, column], teacher_RN[:, column] = _resampled_means(
                paired, options.num_resamples, random
            )
    return needed_tolerances(student_RN, teacher_RN)


def band(tolerances_RN: Floats, at_G: Floats, level: float) -> Band:
    """Percentile bands of resampled ``tolerances_RN``."""
    tails = [(1 - level) / 2, (1 + level) / 2]
    # A bound is a value that a resample had: between two steps of a curve there is nothing.
    low, high = np.quantile(critical_tolerances(tolerances_RN), tails, method="inverted_cdf")
    rates_RG = win_and_tie_rates(tolerances_RN, at_G)
    low_G, high_G = np.quantile(rates_RG, tails, axis=0, method="inverted_cdf")
    at_zero_R1 = win_and_tie_rates(tolerances_RN, np.zeros(1))
    return Band(
        alpha_star=(float(low), float(high)),
        rates=(low_G, high_G),
        lossless_share=float((at_zero_R1 >= 0.5).mean()),
    )


def _resampled_means(
    paired: PairedItems, num_resamples: int, random: np.random.Generator
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Means over the same drawn items, [R] each."""
    size = len(paired.student)
    at_once = max(1, _MOST_DRAWS // size)
    means: list[tuple[Floats, Floats]] = []
    for start in range(0, num_resamples, at_once):
        chosen_RI = random.integers(0, size, (min(at_once, num_resamples - start), size))
        means.append(
            (paired.student[chosen_RI].mean(axis=1), paired.teacher[chosen_RI].mean(axis=1))
        )
    student_R, teacher_R = (np.concatenate(part) for part in zip(*means, strict=True))
    return student_R, teacher_R
