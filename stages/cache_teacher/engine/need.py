"""Which units a budget needs: those before the first at which it is reached, whoever makes them.

In: how many tokens units hold, as far as that is known. Out: whether one more is needed. Called by
whatever hands out units. Engines and workers must come to one answer without asking each other,
so it is a function of the corpus alone: unit u is needed if the units before it hold less than the
budget. Far from the budget that is plain without knowing them all. Near it, what others have not
finished yet is counted: read and tokenised, without the teacher, once.
"""

from collections.abc import Callable, Iterator
from contextlib import suppress

from cache_format import layout
from cache_format.errors import CorruptFileError, MissingFileError
from cache_format.receipt import read_receipt
from cache_format.writer import CacheWriter
from stages.cache_teacher.config import UnitRange
from stages.cache_teacher.engine.workers import WorkerShare

_FAR = 8
"""Units of unknown size are taken to hold at most so many times the largest of known size, on
average. Were that wrong, units would be made that are not needed; none would be left out."""


def is_needed(num_tokens: int, num_held: int, num_unknown: int, largest: int) -> bool | None:
    """Whether the units before one hold less than ``num_tokens``.

    ``num_held`` is what those of known size hold, ``largest`` the largest of any known size. None
    where the ``num_unknown`` others have to be counted to tell.
    """
    if num_held >= num_tokens:
        return False
    if num_unknown == 0:
        return True
    is_far = largest > 0 and num_held + _FAR * largest * num_unknown < num_tokens
    return True if is_far else None


def is_needed_of_part(unit: int, units: UnitRange, num_tokens: int, held: int) -> bool:
    """Whether a part that does not begin with unit 0 needs ``unit``; it holds ``held`` so far.

    A part with an end is made whatever the budget. Without one, units before the part are taken to
    be like it.
    """
    if units.end is not None or unit == units.first:
        return True
    return held * unit / (unit - units.first) < num_tokens


class Budget:
    """What is known of the units' sizes, and whether one more is needed."""

    def __init__(
        self, num_tokens: int, writer: CacheWriter, count_tokens: Callable[[int], int]
    ) -> None:
        """``count_tokens`` counts a unit of which nothing else is known."""
        self.num_tokens = num_tokens
        self._writer, self._count_tokens = writer, count_tokens
        self._sizes: dict[int, int] = {}
        self._held = [0]  # by units 0 to n, as far as all of them are known
        self._largest = 0

    def note(self, unit: int, num_tokens: int) -> None:
        """``unit`` holds ``num_tokens``."""
        self._sizes[unit] = num_tokens
        self._largest = max(self._largest, num_tokens)
        while (size := self._sizes.get(len(self._held) - 1)) is not None:
            self._held.append(self._held[-1] + size)

    def wanted(self, units: UnitRange | WorkerShare) -> Iterator[int]:
        """Those of ``units`` that are needed, rising; each is decided on when it is asked for."""
        for unit in units.numbers():
            if not self._wants(unit, units):
                return
            yield unit

    def is_needed(self, unit: int) -> bool:
        """Whether the units before ``unit`` hold less than the budget."""
        needed = self._decide(unit)
        if needed is None and self._largest == 0:  # it shows how large units are
            self.note(unit, self._count_tokens(unit))
            needed = self._decide(unit)
        if needed is None:
            self._read_receipts()
            needed = self._decide(unit)
        for earlier in range(unit):
            if needed is not None:
                break
            if earlier not in self._sizes:
                self.note(earlier, self._count_tokens(earlier))
                needed = self._decide(unit)
        assert needed is not None, "all sizes are known"
        return needed

    def _decide(self, unit: int) -> bool | None:
        first = min(unit, len(self._held) - 1)
        known = [self._sizes[earlier] for earlier in range(first, unit) if earlier in self._sizes]
        num_unknown = unit - first - len(known)
        return is_needed(
            self.num_tokens, self._held[first] + sum(known), num_unknown, self._largest
        )

    def _wants(self, unit: int, units: UnitRange | WorkerShare) -> bool:
        if isinstance(units, UnitRange) and units.first > 0:
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
                    self.note(unit, read_receipt(storage, unit, spec, None).entry.num_tokens)
