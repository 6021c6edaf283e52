"""The k largest logits of a position as ``top_k`` stores them, and its state as ``hidden`` does.

The logits are exact, and so is the mass of the others; the state says how that is spread.

Shapes: T positions.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cache_format.codec.row import PackedTokens, Row, check_kept_shapes
from cache_format.codec.targets import hidden, top_k
from cache_format.codec.targets.kind import Cells, TargetSums
from cache_format.metadata.spec import CacheSpec
from cache_format.metadata.spec_parts.targets import TargetSpec
from cache_format.tables.shared_files import SharedFiles

COLUMNS: tuple[str, ...] = (*top_k.COLUMNS, *hidden.COLUMNS)
PLAIN_COLUMNS = (*top_k.PLAIN_COLUMNS, *hidden.PLAIN_COLUMNS)


def encode(
    row: Row, scored: NDArray[np.bool_], spec: CacheSpec, shared: SharedFiles
) -> dict[str, bytes]:
    """See ``TargetKind.encode``."""
    check_kept_shapes(row.kept, spec, has_counts=False, has_draws=False)
    cells, _ = top_k.encode_kept(row, scored, spec, shared)
    return cells | hidden.encode(row, scored, spec, shared)


def decode(cells: Cells, tokens: PackedTokens, spec: CacheSpec, shared: SharedFiles) -> Row:
    """See ``TargetKind.decode``."""
    row = top_k.decode(cells, tokens, spec, shared)
    return replace(row, coefficients=hidden.decode(cells, tokens, spec, shared).coefficients)


def bounds_of_sums(spec: TargetSpec) -> dict[str, tuple[float, float]]:
    """See ``TargetKind.bounds_of_sums``."""
    return {**top_k.bounds_of_sums(spec), **hidden.bounds_of_sums(spec)}


def sums(row: Row, scored: NDArray[np.bool_]) -> TargetSums:
    """See ``TargetKind.sums``."""
    return {**top_k.sums(row, scored), **hidden.sums(row, scored)}


def figures(sums: TargetSums, num_scored: int) -> dict[str, float]:
    """See ``TargetKind.figures``."""
    return top_k.figures(sums, num_scored) | hidden.figures(sums, num_scored)


def title(spec: TargetSpec) -> str:
    """See ``TargetKind.title``."""
    return f"{spec.kind}, {spec.logits.top_k} ids and {spec.states.num_components} coefficients"


def describe(spec: TargetSpec, figures: Mapping[str, float]) -> str:
    """See ``TargetKind.describe``."""
    return f"{top_k.describe(spec, figures)}; {hidden.describe(spec, figures)}"


def preview(row: Row, most: int) -> list[dict[str, Any]]:
    """See ``TargetKind.preview``."""
    both = zip(top_k.preview(row, most), hidden.preview(row, most), strict=True)
    return [of_ids | of_state for of_ids, of_state in both]
