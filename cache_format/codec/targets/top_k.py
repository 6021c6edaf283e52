"""The k largest logits of a position, and the log-mass of all others at a few temperatures."""

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from cache_format.codec.plain_columns import KEPT_COLUMNS, TAIL_LOG_MASS
from cache_format.codec.quantizer import logprobs_of_levels
from cache_format.codec.row import PackedTokens, Row, check_kept_shapes
from cache_format.codec.targets import kept_ids
from cache_format.codec.targets.kind import Cells
from cache_format.metadata.spec import CacheSpec
from cache_format.metadata.spec_parts.targets import TargetSpec
from cache_format.tables.shared_files import SharedFiles

COLUMNS: tuple[str, ...] = ("num_kept", "kept", "tail_log_mass", "next_logprob")
PLAIN_COLUMNS = (*KEPT_COLUMNS, TAIL_LOG_MASS)
sums = kept_ids.sums
figures = kept_ids.figures
preview = kept_ids.preview


def encode(
    row: Row, scored: NDArray[np.bool_], spec: CacheSpec, shared: SharedFiles
) -> dict[str, bytes]:
    """See ``TargetKind.encode``."""
    check_kept_shapes(row.kept, spec, has_counts=False, has_draws=False)
    return encode_kept(row, scored, spec, shared)[0]


def encode_kept(
    row: Row, scored: NDArray[np.bool_], spec: CacheSpec, shared: SharedFiles
) -> tuple[dict[str, bytes], kept_ids.Kept]:
    """The cells of ``COLUMNS``, and the kept ids as they are stored."""
    targets, ranks = spec.targets, shared.ranks
    kept = kept_ids.from_logits(row.kept, scored, targets, ranks)
    table = logprobs_of_levels(targets.logits.num_levels)
    cells = kept_ids.encode(row, kept, table, targets.logits.top_k, spec, ranks)
    return cells | {"tail_log_mass": kept_ids.encode_tail(row.kept, kept, targets)}, kept


def decode(cells: Cells, tokens: PackedTokens, spec: CacheSpec, shared: SharedFiles) -> Row:
    """See ``TargetKind.decode``."""
    logits = spec.targets.logits
    found = kept_ids.decode(cells, tokens, logits.top_k, spec)
    logprobs = kept_ids.look_up(found, logprobs_of_levels(logits.num_levels))
    tail = kept_ids.decode_tail(cells, spec)
    kept = kept_ids.to_kept_ids(found, logprobs, tail, cells, spec, shared.ranks)
    return kept_ids.to_row(tokens, kept)


def bounds_of_sums(spec: TargetSpec) -> dict[str, tuple[float, float]]:
    """See ``TargetKind.bounds_of_sums``."""
    return kept_ids.bounds_of_sums(spec.logits.top_k)


def title(spec: TargetSpec) -> str:
    """See ``TargetKind.title``."""
    return f"{spec.kind}, {spec.logits.top_k} ids"


def describe(spec: TargetSpec, figures: Mapping[str, float]) -> str:
    """See ``TargetKind.describe``."""
    del spec
    num_kept, mass = figures["mean_num_kept"], figures["mean_kept_mass"]
    return f"{num_kept:.1f} ids per position, {mass:.2%} of the mass"
