"""The interface of a target kind in the format. Each kind is a module, see ``kinds.py``.

Shapes: T positions.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from cache_format.codec.plain_columns import PlainColumn
from cache_format.codec.row import PackedTokens, Row
from cache_format.metadata.spec import CacheSpec
from cache_format.metadata.spec_parts.targets import TargetSpec
from cache_format.metadata.vocabulary_ranks import RankTable

Cells = Mapping[str, bytes | memoryview]
"""Bytes of a row by column."""


class TargetSums(NamedTuple):
    """Sums over the scored positions of a row or a shard, as receipts hold them."""

    num_kept: int
    """Kept ids."""
    kept_mass: float
    """Their share of the mass."""
    num_drawn: int | None
    """Distinct ids drawn from the tail; None where the kind draws none."""


def total_sums(sums: Sequence[TargetSums], no_sums: TargetSums) -> TargetSums:
    """Those of all rows together; ``no_sums`` are those of the kind where there are no rows."""
    num_drawn = [one.num_drawn for one in sums if one.num_drawn is not None]
    return TargetSums(
        num_kept=sum(one.num_kept for one in sums),
        kept_mass=math.fsum(one.kept_mass for one in sums),
        num_drawn=None if no_sums.num_drawn is None else sum(num_drawn),
    )


class TargetKind(Protocol):
    """One kind of target."""

    ROW_FIELDS: tuple[str, ...]
    """Fields of ``Row`` that this kind has and that are None where a kind has them not."""
    COLUMNS: tuple[str, ...]
    """Binary columns of a shard, in their order."""
    NO_SUMS: TargetSums
    """The sums of no rows."""
    PLAIN_COLUMNS: tuple[PlainColumn, ...]
    """The targets as lists of numbers, for other programs."""

    def encode(
        self, row: Row, scored: NDArray[np.bool_], spec: CacheSpec, ranks: RankTable
    ) -> dict[str, bytes]:
        """The cells of ``COLUMNS``; ``scored`` is [T].

        Raises ValueError that names column and position where the row breaks a rule.
        """

    def decode(self, cells: Cells, tokens: PackedTokens, spec: CacheSpec, ranks: RankTable) -> Row:
        """The row with these cells, without a sketch; raises ValueError that names the column."""

    def sums(self, row: Row, scored: NDArray[np.bool_]) -> TargetSums:
        """What a receipt tells of a row's targets; ``scored`` is [T]."""

    def figures(self, sums: TargetSums, num_scored: int) -> dict[str, float]:
        """Means over ``num_scored`` ≥ 1 positions, by the names of their figures."""

    def title(self, spec: TargetSpec) -> str:
        """The targets in a few words, from the spec alone."""

    def describe(self, spec: TargetSpec, figures: Mapping[str, float]) -> str:
        """What a position holds, in words, from ``figures``."""

    def preview(self, row: Row, most: int) -> list[dict[str, Any]]:
        """What each of T positions holds, fit for JSON, the ``most`` likeliest ids of each.

        A value is a number, or a list of ids, each a dictionary with the key ``id``. What is
        returned for positions that are not scored means nothing.
        """
