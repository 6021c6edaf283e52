"""How a sequence is divided among several sources: a pure function of their weights.

The rows of a run among several caches, and the units of a cache among several corpora.

In: weights. Out: for the n-th row of the sequence, which source it comes from, and how many rows of
that source came before it. Whatever rows are looked at from the first one on, a source's number of
them differs from its share by less than one row. Each row that a source is owed is due at a time of
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
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    Numbers = npt.NDArray[np.int64]

LONGEST_PERIOD = 2**20  # makes a table of that many entries, once, in a second or two


@dataclass(frozen=True)
class Interleaving:
    """An endless sequence of sources, which repeats itself after ``sum(shares)`` rows."""

    shares: tuple[int, ...]
    """Rows of each source in a period."""

    def at(self, places_n: "Numbers") -> "tuple[Numbers, Numbers]":
        """The source of the rows at ``places_n``, and how many rows of it come before each."""
        import numpy as np

        source_D, before_D = _period(self.shares)
        periods_n, within_n = np.divmod(places_n, len(source_D))
        source_n = source_D[within_n]
        return source_n, periods_n * np.array(self.shares)[source_n] + before_D[within_n]

    def at_one(self, place: int) -> tuple[int, int]:
        """``at`` for one place, however large."""
        periods, within = divmod(place, sum(self.shares))
        source_D, before_D = _period(self.shares)
        source = int(source_D[within])
        return source, periods * self.shares[source] + int(before_D[within])

    def counts(self, num_rows: int) -> list[int]:
        """How many of the first ``num_rows`` come from each source."""
        periods, rest = divmod(num_rows, sum(self.shares))
        source_D, _ = _period(self.shares)
        begun = source_D[:rest].tolist()
        within = [begun.count(source) for source in range(len(self.shares))]
        return [periods * share + count for share, count in zip(self.shares, within, strict=True)]


def interleaving(weights: Sequence[float], longest_period: int = LONGEST_PERIOD) -> Interleaving:
    """The sequence for relative ``weights``, taken as the decimal numbers that they are written as.

    Shares are exact, or within one in ``longest_period`` where that would need a longer one. Raises
    ValueError for a weight that is not above 0, or too small beside the others.
    """
    for weight in weights:
        if not 0 < weight < math.inf:
            raise ValueError(f"weights: must be above 0 and finite, found {weight:g}")
    exact = [Fraction(repr(float(weight))) for weight in weights]
    shares = [weight / sum(exact) for weight in exact]
    period = math.lcm(*(share.denominator for share in shares))
    period = min(period, longest_period)
    counts = _apportioned(shares, period)
    if min(counts) == 0:
        smallest = weights[counts.index(0)]
        least = "a millionth" if period == LONGEST_PERIOD else f"1 in {period}"
        raise ValueError(f"weights: {smallest:g} is less than {least} of their sum")
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
def _period(shares: tuple[int, ...]) -> "tuple[Numbers, Numbers]":
    """Of each row of a period its source, and how many of that source come before it: [D] each."""
    import numpy as np

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
