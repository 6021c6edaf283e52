"""Which units a budget needs: those before the first at which it is reached, whoever makes them.

In: how many tokens units hold, as far as that is known. Out: whether one more is needed. Called by
whatever hands out units. Engines and workers must come to one answer without asking each other,
so it is a function of the corpus alone: unit u is needed if the units before it hold less than the
budget. Far from the budget that is plain without knowing them all: those of unknown size are taken
to hold what those of known size make likely, and a margin. Near it, what others have not finished
yet is counted: read and tokenised, without the teacher, once. Should units hold more than the
margin allows, one is made that is not needed; none is ever left out, for "no" is said only of what
is known.
"""

import math
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass

from cache_format.errors import CorruptFileError, MissingFileError
from cache_format.metadata import layout
from cache_format.metadata.receipt import read_receipt
from cache_format.writer import CacheWriter
from stages.cache_teacher.config import UnitRange
from stages.cache_teacher.worker_share import WorkerShare

_ENOUGH_SIZES = 8
"""So many sizes have to be known before their mean says anything."""
_TIMES_LARGEST = 8
"""Until then, units are taken to hold so many times the largest."""
_TIMES_MEAN = 1.5
"""The least margin, for corpora whose documents grow longer on the way."""
_NUM_ERRORS = 6
"""The margin in standard errors, which is the wider one where few sizes are known or asked for."""
_COUNTED_PER_LOOK = 16
"""Units counted before others are asked again whether they have finished some."""


@dataclass(kw_only=True)
class UnitSizes:
    """What the units of known size hold, in tokens."""

    num_units: int = 0
    total: int = 0
    total_of_squares: int = 0
    largest: int = 0

    def add(self, num_tokens: int) -> None:
        """One more is known."""
        self.num_units += 1
        self.total += num_tokens
        self.total_of_squares += num_tokens**2
        self.largest = max(self.largest, num_tokens)

    def likely_most(self, num_units: int) -> float:
        """What so many others hold at most, in all likelihood; infinite while nothing is known.

        Their sum is predicted from mean and variance, as of units drawn from one population: its
        error has the variance of the sum itself, and that of the mean that is only estimated.
        """
        if self.largest == 0:
            return math.inf
        if self.num_units < _ENOUGH_SIZES:
            return float(_TIMES_LARGEST * self.largest * num_units)
        mean = self.total / self.num_units
        variance = (self.total_of_squares - self.total * mean) / (self.num_units - 1)
        error = math.sqrt(max(0.0, variance) * num_units * (1 + num_units / self.num_units))
        return max(_TIMES_MEAN * mean * num_units, mean * num_units + _NUM_ERRORS * error)


def is_needed(num_tokens: int, num_held: int, num_unknown: int, sizes: UnitSizes) -> bool | None:
    """Whether the units before one hold less than ``num_tokens``.

    ``num_held`` is what those of known size hold, ``sizes`` what any units hold. None where the
    ``num_unknown`` others have to be counted to tell.
    """
    if num_held >= num_tokens:
        return False
    if num_unknown == 0:
        return True
    return True if num_held + sizes.likely_most(num_unknown) < num_tokens else None


def is_needed_of_part(unit: int, units: UnitRange, num_tokens: int, held: int) -> bool:
    """Whether a part that does not begin with unit 0 needs ``unit``; it holds ``held`` so far.

    A part with an end is made whatever the budget. Without one, units before the part are taken to
    be like it.
    """
    if units.end is not None or unit == units.first:
        return True
    return held * unit / (unit - units.first) < num_tokens


class TokenBudget:
    """What is known of the units' sizes, and whether one more is needed; for any thread."""

    def __init__(
        self, num_tokens: int, writer: CacheWriter, count_tokens: Callable[[int], int]
    ) -> None:
        """``count_tokens`` counts a unit of which nothing else is known; it may raise, to stop."""
        self.num_tokens = num_tokens
        self._writer, self._count_tokens = writer, count_tokens
        self._sizes: dict[int, int] = {}
        self._held = [0]  # by units 0 to n, as far as all of them are known
        self._known = UnitSizes()
        self._lock = threading.Lock()  # of the three; never held while units are counted

    def record(self, unit: int, num_tokens: int) -> None:
        """``unit`` holds ``num_tokens``; said again, it changes nothing."""
        with self._lock:
            if unit in self._sizes:
                return
            self._sizes[unit] = num_tokens
            self._known.add(num_tokens)
            while (size := self._sizes.get(len(self._held) - 1)) is not None:
                self._held.append(self._held[-1] + size)

    def mean_size(self) -> float:
        """What a unit of known size holds on average, in tokens; 0 while none is known."""
        with self._lock:
            return self._known.total / max(1, self._known.num_units)

    def needed_units(self, units: UnitRange | WorkerShare) -> Iterator[int]:
        """Those of ``units`` that are needed, rising; each is decided on when it is asked for."""
        for unit in units.numbers():
            if not self._wants(unit, units):
                return
            yield unit

    def is_needed(self, unit: int) -> bool:
        """Whether the units before ``unit`` hold less than the budget."""
        needed = self._decide(unit)
        if needed is None and self._known.largest == 0:  # it shows how large units are
            self.record(unit, self._count_tokens(unit))
            needed = self._decide(unit)
        if needed is None:
            self._read_receipts()
            needed = self._decide(unit)
        return self._count_until_plain(unit) if needed is None else needed

    def _count_until_plain(self, unit: int) -> bool:
        num_counted = 0
        for earlier in range(unit):
            if earlier in self._sizes:
                continue
            self.record(earlier, self._count_tokens(earlier))
            num_counted += 1
            if num_counted % _COUNTED_PER_LOOK == 0:
                self._read_receipts()
            needed = self._decide(unit)
            if needed is not None:
                return needed
        needed = self._decide(unit)
        assert needed is not None, "all sizes are known"
        return needed

    def _decide(self, unit: int) -> bool | None:
        with self._lock:
            first = min(unit, len(self._held) - 1)
            known = [self._sizes[other] for other in range(first, unit) if other in self._sizes]
            num_held = self._held[first] + sum(known)
            num_unknown = unit - first - len(known)
            return is_needed(self.num_tokens, num_held, num_unknown, self._known)

    def _wants(self, unit: int, units: UnitRange | WorkerShare) -> bool:
        if isinstance(units, UnitRange) and units.first > 0:
            with self._lock:
                held = sum(self._sizes[earlier] for earlier in range(units.first, unit))
            return is_needed_of_part(unit, units, self.num_tokens, held)
        return self.is_needed(unit)

    def _read_receipts(self) -> None:
        """Note the units that others have finished since."""
        storage, spec = self._writer.storage, self._writer.spec
        for unit in layout.receipt_units(storage):
            if unit not in self._sizes:
                # One that cannot be read is counted.
                with suppress(CorruptFileError, MissingFileError):
                    self.record(unit, read_receipt(storage, unit, spec, None).entry.num_tokens)
