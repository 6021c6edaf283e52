"""How the rows of a run are divided among several caches: a pure function of their weights.

In: weights. Out: for the n-th row that a run draws, which cache it comes from, and how many rows of
that cache came before it. Whatever rows are looked at from the first one on, a cache's number of
them differs from its share by less than one row. Each row that a cache is owed is due at a time of
its own, none is given before it is owed, and of those that are owed, the one due first is given:
the windows of Pfair schedules (Baruah, Cohen, Plaxton and Varvel, Algorithmica 15, 1996) and, as
there is one row at a time, the earliest deadline.

S sources, D rows of a period, n rows.
"""

import heapq
import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache

import numpy as np
import numpy.typing as npt

_LONGEST_PERIOD = 2**20  # makes a table of that many entries, once, in a second or two

Numbers = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Interleaving:
    """An endless sequence of sources, which repeats itself after ``sum(shares)`` rows."""

    shares: tuple[int, ...]
    """Rows of each source in a period."""

    def at(self, places_n: Numbers) -> tuple[Numbers, Numbers]:
        """The source of the rows at ``places_n``, and how many rows of it come before each."""
        source_D, before_D = _period(self.shares)
        periods_n, within_n = np.divmod(places_n, len(source_D))
        source_n = source_D[within_n]
        return source_n, periods_n * np.array(self.shares)[source_n] + before_D[within_n]


def interleaving(weights: Sequence[float]) -> Interleaving:
    """The sequence for relative ``weights``, taken as the decimal numbers that they are written as.

    Shares are exact, or within a millionth where that would need too long a period. Raises
    ValueError for a weight that is not above 0, or too small beside the others.
    """
    for weight in weights:
        if not 0 < weight < math.inf:
            raise ValueError(f"weights: must be above 0 and finite, found {weight:g}")
    exact = [Fraction(repr(float(weight))) for weight in weights]
    shares = [weight / sum(exact) for weight in exact]
    period = math.lcm(*(share.denominator for share in shares))
    if period > _LONGEST_PERIOD:
        period = _LONGEST_PERIOD
    counts = _apportioned(shares, period)
    if min(counts) == 0:
        smallest = weights[counts.index(0)]
        raise ValueError(f"weights: {smallest:g} is less than a millionth of their sum")
    divisor = math.gcd(*counts)
    return Interleaving(tuple(count // divisor for count in counts))


def _apportioned(shares: Sequence[Fraction], total: int) -> list[int]:
    """``total`` in whole parts nearest to ``shares``: the largest remainders are rounded up."""
    counts = [math.floor(share * total) for share in shares]
    by_remainder = sorted(range(len(shares)), key=lambda s: counts[s] - shares[s] * total)
    for source in by_remainder[: total - sum(counts)]:
        counts[source] += 1
    return counts


@lru_cache(maxsize=8)
def _period(shares: tuple[int, ...]) -> tuple[Numbers, Numbers]:
    """Of each row of a period its source, and how many of that source come before it: [D] each."""
    period = sum(shares)
    source_D, before_D = np.empty(period, np.int64), np.empty(period, np.int64)
    # Row j of a source of p rows is owed from floor(j·D/p) on, and due before ceil((j + 1)·D/p).
    owed = [(0, source, 0) for source in range(len(shares))]
    due: list[tuple[int, int, int]] = []
    for place in range(period):
        while owed and owed[0][0] <= place:
            _, source, number = heapq.heappop(owed)
            heapq.heappush(due, (-(-(number + 1) * period // shares[source]), source, number))
        _, source, number = heapq.heappop(due)
        source_D[place], before_D[place] = source, number
        if number + 1 < shares[source]:
            begin = (number + 1) * period // shares[source]
            heapq.heappush(owed, (begin, source, number + 1))
    return source_D, before_D
