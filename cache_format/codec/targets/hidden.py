"""The teacher's last hidden state of a position, as the coefficients of the cache's transform.

The column ``hidden`` holds the coefficients of the scored positions (see ``coding/coefficients``).

Shapes: T positions, P of them scored, J components, D width.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cache_format.codec.plain_columns import PlainColumn, PlainValues
from cache_format.codec.row import PackedTokens, Row
from cache_format.codec.targets import coefficient_cells
from cache_format.codec.targets.kind import Cells, TargetSums
from cache_format.metadata.spec import CacheSpec
from cache_format.metadata.spec_parts.targets import KL_TEMPERATURES, TargetSpec
from cache_format.tables.shared_files import SharedFiles

COLUMNS: tuple[str, ...] = ("hidden",)


def encode(
    row: Row, scored: NDArray[np.bool_], spec: CacheSpec, shared: SharedFiles
) -> dict[str, bytes]:
    """See ``TargetKind.encode``."""
    del spec
    assert row.coefficients is not None, "check_shapes"
    code = shared.hidden_transform.code
    cell = coefficient_cells.encode("coefficients", row.coefficients, scored, code)
    return {"hidden": cell}


def decode(cells: Cells, tokens: PackedTokens, spec: CacheSpec, shared: SharedFiles) -> Row:
    """See ``TargetKind.decode``."""
    del spec
    code = shared.hidden_transform.code
    coefficients = coefficient_cells.decode("hidden", cells["hidden"], tokens.scored(), code)
    return Row(
        token_ids=tokens.token_ids,
        document_starts=tokens.document_starts,
        is_context=tokens.is_context,
        coefficients=coefficients,
    )


def bounds_of_sums(spec: TargetSpec) -> dict[str, tuple[float, float]]:
    """See ``TargetKind.bounds_of_sums``."""
    return {"num_nonzero": (0, spec.states.num_components)}


def sums(row: Row, scored: NDArray[np.bool_]) -> TargetSums:
    """See ``TargetKind.sums``."""
    assert row.coefficients is not None
    return {"num_nonzero": float(np.count_nonzero(row.coefficients[scored]))}


def figures(sums: TargetSums, num_scored: int) -> dict[str, float]:
    """See ``TargetKind.figures``."""
    return {"mean_num_nonzero": sums["num_nonzero"] / num_scored}


def title(spec: TargetSpec) -> str:
    """See ``TargetKind.title``."""
    return f"{spec.kind}, {spec.states.num_components} coefficients"


def describe(spec: TargetSpec, figures: Mapping[str, float]) -> str:
    """See ``TargetKind.describe``."""
    lost = ", ".join(
        f"{kl:.3f} at T = {temperature:g}"
        for kl, temperature in zip(spec.states.self_kl, KL_TEMPERATURES, strict=True)
    )
    return (
        f"the whole distribution, from {figures['mean_num_nonzero']:.0f} of "
        f"{spec.states.num_components} coefficients that are not 0; KL to the teacher's own, nats: "
        f"{lost}"
    )


def preview(row: Row, most: int) -> list[dict[str, Any]]:
    """See ``TargetKind.preview``. Ids are not known without the teacher's head."""
    del most
    assert row.coefficients is not None
    return [{"num_nonzero": int(np.count_nonzero(one))} for one in row.coefficients]


def _coefficients(row: Row) -> PlainValues:
    assert row.coefficients is not None
    return coefficient_cells.plain_values(row.coefficients, row.scored())


PLAIN_COLUMNS: tuple[PlainColumn, ...] = (
    PlainColumn("coefficients", "int32", True, _coefficients),
)
