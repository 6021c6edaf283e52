"""The interface of a target kind in the format. Each kind is a module, see ``kinds.py``.

Shapes: T positions.
"""

import math
from collections.abc import Iterable, Mapping
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from cache_format.codec.plain_columns import PlainColumn
from cache_format.codec.row import PackedTokens, Row
from cache_format.metadata.spec import CacheSpec
from cache_format.metadata.spec_parts.targets import TargetSpec
from cache_format.tables.shared_files import SharedFiles

Cells = Mapping[str, bytes | memoryview]
"""Bytes of a row by column."""


TargetSums = Mapping[str, float]
"""Sums over the scored positions of a row or a shard, by name, as receipts hold them."""


def total_sums(sums: Iterable[TargetSums], names: Iterable[str]) -> dict[str, float]:
    """Those of all rows or shards together; what a faulty receipt lacks is NaN, what no float can
    hold infinite."""
    every = list(sums)
    return {name: _sum([one.get(name, math.nan) for one in every]) for name in names}


def _sum(values: list[float]) -> float:
    try:
        return math.fsum(values)
    except OverflowError:
        return sum(values)


class TargetKind(Protocol):
    """One kind of target."""

    COLUMNS: tuple[str, ...]
    """Binary columns of a shard, in their order."""
    PLAIN_COLUMNS: tuple[PlainColumn, ...]
    """The targets as lists of numbers, for other programs."""

    def encode(
        self, row: Row, scored: NDArray[np.bool_], spec: CacheSpec, shared: SharedFiles
    ) -> dict[str, bytes]:
        """The cells of ``COLUMNS``; ``scored`` is [T].

        Raises ValueError that names column and position where the row breaks a rule.
        """

    def decode(
        self, cells: Cells, tokens: PackedTokens, spec: CacheSpec, shared: SharedFiles
    ) -> Row:
        """The row with these cells, without a sketch; raises ValueError that names the column."""

    def bounds_of_sums(self, spec: TargetSpec) -> Mapping[str, tuple[float, float]]:
        """What a receipt sums up, and the least and most that a scored position adds.

        ``next_logprob`` is that of the labels, where it is known.
        """

    def sums(self, row: Row, scored: NDArray[np.bool_]) -> TargetSums:
        """What a receipt tells of a row's targets; ``scored`` is [T]."""

    def figures(self, sums: TargetSums, num_scored: int) -> dict[str, float]:
        """Means over ``num_scored`` ≥ 1 positions, by the names of their figures; ``loss`` is the
        teacher's cross-entropy, if it is known."""

    def title(self, spec: TargetSpec) -> str:
        """The targets in a few words, from the spec alone."""

    def describe(self, spec: TargetSpec, figures: Mapping[str, float]) -> str:
        """What a position holds, in words, from ``figures``."""

    def preview(self, row: Row, most: int) -> list[dict[str, Any]]:
        """What each of T positions holds, fit for JSON, the ``most`` likeliest ids of each.

        A value is a number, or a list of ids, each a dictionary with the key ``id``. What is
        returned for positions that are not scored means nothing.
        """
