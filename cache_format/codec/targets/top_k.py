"""The k largest logits of a position, and the log-mass of all others at a few temperatures."""

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from cache_format.codec.plain_columns import KEPT_COLUMNS
from cache_format.codec.quantizer import logprobs_of_levels
from cache_format.codec.row import PackedTokens, Row
from cache_format.codec.targets import kept_ids
from cache_format.codec.targets.kind import Cells, TargetSums
from cache_format.metadata.spec import CacheSpec
from cache_format.metadata.spec_parts.targets import TargetSpec
from cache_format.metadata.vocabulary_ranks import RankTable

ROW_FIELDS: tuple[str, ...] = ()
COLUMNS = kept_ids.COLUMNS
NO_SUMS = TargetSums(0, 0.0, None)
PLAIN_COLUMNS = KEPT_COLUMNS
sums = kept_ids.sums
figures = kept_ids.figures
title = kept_ids.title
preview = kept_ids.preview


def encode(
    row: Row, scored: NDArray[np.bool_], spec: CacheSpec, ranks: RankTable
) -> dict[str, bytes]:
    """See ``TargetKind.encode``."""
    kept = kept_ids.from_logits(row, scored, spec.targets, ranks)
    return kept_ids.encode(row, kept, logprobs_of_levels(spec.targets.num_levels), spec, ranks)


def decode(cells: Cells, tokens: PackedTokens, spec: CacheSpec, ranks: RankTable) -> Row:
    """See ``TargetKind.decode``."""
    found = kept_ids.decode(cells, tokens, spec)
    table = logprobs_of_levels(spec.targets.num_levels)
    return kept_ids.to_row(found, kept_ids.look_up(found, table), cells, spec, ranks)


def describe(spec: TargetSpec, figures: Mapping[str, float]) -> str:
    """See ``TargetKind.describe``."""
    del spec
    num_kept, mass = figures["mean_num_kept"], figures["mean_kept_mass"]
    return f"{num_kept:.1f} ids per position, {mass:.2%} of the mass"
