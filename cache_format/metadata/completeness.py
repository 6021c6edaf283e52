"""The rule for when a cache is complete, used when making, opening or merging one."""

from collections.abc import Callable, Mapping
from itertools import count

from cache_format.metadata.manifest import ShardEntry


def is_complete(
    entries: Mapping[int, ShardEntry], num_tokens: int, has_unit: Callable[[int], bool]
) -> bool:
    """Whether the units before the first missing one hold the budget, or are the whole corpus.

    ``entries`` are the finished units, ``num_tokens`` is the budget, and ``has_unit`` tells of a
    unit whether the corpus has it; it is asked only of the first missing one, below the budget.
    """
    num_units = next(unit for unit in count() if unit not in entries)
    num_held = sum(entries[unit].num_tokens for unit in range(num_units))
    return num_units > 0 and (num_held >= num_tokens or not has_unit(num_units))
