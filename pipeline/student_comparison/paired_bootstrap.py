"""Is a difference between two students chance? A paired bootstrap over validation rows.

A figure is a mean over positions, so the difference of two is Σ d / Σ n over rows, d being what a
row's sums differ by and n its scored positions. Rows are drawn with replacement, the same ones for
both students: what makes a row hard for both drops out of d. Positions of a row share a text, and
are not drawn by themselves (Koehn 2004, "Statistical significance tests for machine translation
evaluation").

I rows, R resamples.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline.judgement.bootstrap import BootstrapOptions

Floats = NDArray[np.float64]

_MOST_DRAWS = 1 << 21  # of rows at once: 16 MB of indices


@dataclass(frozen=True, kw_only=True)
class Difference:
    """Of one figure, the second student's less the first's."""

    value: float
    low: float
    high: float
    """Bounds of the interval."""
    share: float
    """Twice the share of resamples on the other side of zero, at most 1: near 0, the sign is
    certain. Never below 2 / (R + 1), which is as much as R resamples can tell."""

    @property
    def is_real(self) -> bool:
        """Whether zero lies outside of the interval."""
        return not self.low <= 0.0 <= self.high


def paired_difference(
    first_I: Floats, second_I: Floats, num_scored_I: Floats, options: BootstrapOptions
) -> Difference:
    """The difference of two students' sums over rows.

    Raises ValueError where no position is scored.
    """
    differences_I, total = second_I - first_I, float(num_scored_I.sum())
    if total <= 0:
        raise ValueError("none of the rows has a scored position, so there is nothing to compare")
    resampled_R = _resampled_ratios(differences_I, num_scored_I, options)
    tails = [(1 - options.level) / 2, (1 + options.level) / 2]
    low, high = np.quantile(resampled_R, tails)
    return Difference(
        value=float(differences_I.sum()) / total,
        low=float(low),
        high=float(high),
        share=_two_sided_share(resampled_R),
    )


def _two_sided_share(resampled_R: Floats) -> float:
    # As if the sample itself had been drawn once more: no number of resamples proves a zero.
    on_a_side = min((resampled_R <= 0).sum(), (resampled_R >= 0).sum()) + 1
    return min(1.0, 2 * float(on_a_side) / (len(resampled_R) + 1))


def _resampled_ratios(
    numerator_I: Floats, denominator_I: Floats, options: BootstrapOptions
) -> Floats:
    """Ratios of the sums over drawn rows, [R]; 0 where no drawn row has a scored position."""
    random = np.random.default_rng(options.seed)
    size, num_resamples = len(numerator_I), options.num_resamples
    at_once = max(1, _MOST_DRAWS // size)
    parts: list[Floats] = []
    for start in range(0, num_resamples, at_once):
        chosen_RI = random.integers(0, size, (min(at_once, num_resamples - start), size))
        total_R = denominator_I[chosen_RI].sum(axis=1)
        parts.append(numerator_I[chosen_RI].sum(axis=1) / np.maximum(total_R, 1.0))
    return np.concatenate(parts)
