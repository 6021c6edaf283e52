"""The moments of the teacher's tail, beside what a kind of target that keeps logits stores.

The column ``tail_moment`` holds their coefficients at the scored positions (see
``coding/coefficients``). It goes with several kinds: ``WithTailMoment`` is such a kind with it.

Shapes: T positions.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cache_format.codec.plain_columns import PlainColumn, PlainValues
from cache_format.codec.row import PackedTokens, Row
from cache_format.codec.targets import coefficient_cells
from cache_format.codec.targets.kind import Cells, TargetKind, TargetSums
from cache_format.metadata.spec import CacheSpec
from cache_format.metadata.spec_parts.targets import TargetSpec
from cache_format.tables.shared_files import SharedFiles

_COLUMN = "tail_moment"
_SUM = "num_nonzero_of_moment"


class WithTailMoment:
    """A kind with the column; a ``TargetKind`` as well."""

    def __init__(self, kind: TargetKind) -> None:
        self.kind = kind
        self.COLUMNS: tuple[str, ...] = (*kind.COLUMNS, _COLUMN)
        plain = PlainColumn("moment_coefficients", "int32", True, _plain)
        self.PLAIN_COLUMNS: tuple[PlainColumn, ...] = (*kind.PLAIN_COLUMNS, plain)

    def encode(
        self, row: Row, scored: NDArray[np.bool_], spec: CacheSpec, shared: SharedFiles
    ) -> dict[str, bytes]:
        """See ``TargetKind``."""
        code = shared.moment_transform.transform.code
        cell = coefficient_cells.encode("moment_coefficients", _of(row), scored, code)
        return self.kind.encode(row, scored, spec, shared) | {_COLUMN: cell}

    def decode(
        self, cells: Cells, tokens: PackedTokens, spec: CacheSpec, shared: SharedFiles
    ) -> Row:
        """See ``TargetKind``."""
        row = self.kind.decode(cells, tokens, spec, shared)
        code = shared.moment_transform.transform.code
        coefficients = coefficient_cells.decode(_COLUMN, cells[_COLUMN], tokens.scored(), code)
        return replace(row, moment_coefficients=coefficients)

    def bounds_of_sums(self, spec: TargetSpec) -> dict[str, tuple[float, float]]:
        """See ``TargetKind``."""
        most = spec.tail_moment.num_components
        return {**self.kind.bounds_of_sums(spec), _SUM: (0, most)}

    def sums(self, row: Row, scored: NDArray[np.bool_]) -> TargetSums:
        """See ``TargetKind``."""
        num_nonzero = float(np.count_nonzero(_of(row)[scored]))
        return {**self.kind.sums(row, scored), _SUM: num_nonzero}

    def figures(self, sums: TargetSums, num_scored: int) -> dict[str, float]:
        """See ``TargetKind``."""
        mean = {"mean_num_nonzero_of_moment": sums[_SUM] / num_scored}
        return self.kind.figures(sums, num_scored) | mean

    def title(self, spec: TargetSpec) -> str:
        """See ``TargetKind``."""
        return f"{self.kind.title(spec)} and the tail's moment in {spec.tail_moment.dim} directions"

    def describe(self, spec: TargetSpec, figures: Mapping[str, float]) -> str:
        """See ``TargetKind``."""
        moment = spec.tail_moment
        return (
            f"{self.kind.describe(spec, figures)}; the tail's moment in {moment.dim} directions, "
            f"{figures['mean_num_nonzero_of_moment']:.0f} of {moment.num_components} coefficients "
            "that are not 0"
        )

    def preview(self, row: Row, most: int) -> list[dict[str, Any]]:
        """See ``TargetKind``."""
        counts = np.count_nonzero(_of(row), axis=1).tolist()
        both = zip(self.kind.preview(row, most), counts, strict=True)
        return [position | {"num_nonzero_of_moment": count} for position, count in both]


def _of(row: Row) -> NDArray[np.int16]:
    assert row.moment_coefficients is not None, "check_shapes"
    return row.moment_coefficients


def _plain(row: Row) -> PlainValues:
    return coefficient_cells.plain_values(_of(row), row.scored())
