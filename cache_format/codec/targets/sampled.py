"""Ids drawn from the teacher's whole distribution, with their counts (RS-KD, arXiv 2503.16870).

A level is the number of draws less an id's count, so a count comes back as it was. Nothing is left
out: there is no tail, and log Z − z_max is 0.

Shapes: T positions, N kept entries of all positions together.
"""

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from cache_format.codec import columns
from cache_format.codec.plain_columns import COUNTS, KEPT_COLUMNS
from cache_format.codec.row import PackedTokens, Row
from cache_format.codec.targets import kept_ids
from cache_format.codec.targets.kept_ids import Found, named
from cache_format.codec.targets.kind import Cells, TargetSums
from cache_format.metadata.spec import CacheSpec
from cache_format.metadata.spec_parts.targets import TargetSpec
from cache_format.metadata.vocabulary_ranks import RankTable

ROW_FIELDS: tuple[str, ...] = ("counts",)
COLUMNS = kept_ids.COLUMNS
NO_SUMS = TargetSums(0, 0.0, None)
PLAIN_COLUMNS = (*KEPT_COLUMNS, COUNTS)
sums = kept_ids.sums
figures = kept_ids.figures
title = kept_ids.title
preview = kept_ids.preview


def encode(
    row: Row, scored: NDArray[np.bool_], spec: CacheSpec, ranks: RankTable
) -> dict[str, bytes]:
    """See ``TargetKind.encode``."""
    num_samples = spec.targets.num_levels
    num_kept, position = kept_ids.check_kept_ids(row, scored, ranks)
    if not np.isneginf(row.tail_log_mass[scored, -1]).all():
        raise ValueError("tail_log_mass: samples have no tail, expected −inf")
    levels = named("counts", lambda: _levels_of_counts(row, num_kept, position, num_samples))
    log_z = np.zeros(len(num_kept))
    kept = kept_ids.Kept(kept_ids.to_entries(row, levels, ranks), log_z, scored)
    return kept_ids.encode(row, kept, _logprobs_of_levels(num_samples), spec, ranks)


def decode(cells: Cells, tokens: PackedTokens, spec: CacheSpec, ranks: RankTable) -> Row:
    """See ``TargetKind.decode``."""
    num_samples = spec.targets.num_levels
    found = kept_ids.decode(cells, tokens, spec)
    # Up to a count of 1: the level of a count of 0 stands for labels that were not drawn.
    logprobs = kept_ids.look_up(found, _logprobs_of_levels(num_samples)[:-1])
    counts = num_samples - found.entries.levels
    named("kept", lambda: _require_sums(counts, found, num_samples))
    if found.has_tail.any():
        raise ValueError("tail_log_mass: expected none: samples have no tail")
    row = kept_ids.to_row(found, logprobs, cells, spec, ranks)
    return replace(row, counts=counts.astype(np.uint16))


def describe(spec: TargetSpec, figures: Mapping[str, float]) -> str:
    """See ``TargetKind.describe``."""
    return (
        f"{figures['mean_num_kept']:.1f} ids per position, from {spec.num_levels} draws at "
        f"temperature {1 / spec.inverse_temperatures[0]:g}"
    )


def _logprobs_of_levels(num_samples: int) -> NDArray[np.float64]:
    """The log-probability that each level stands for, [num_samples + 1]; of the last, a quarter of
    a draw."""
    counts = np.arange(num_samples, -1, -1)
    return np.log(np.maximum(counts, 0.25) / num_samples)


def _levels_of_counts(
    row: Row, num_kept: NDArray[np.int64], position: NDArray[np.int64], num_samples: int
) -> NDArray[np.int64]:
    """The level of each entry, [N]; raises ValueError where counts do not add up."""
    assert row.counts is not None
    counts = row.counts.astype(np.int64)
    columns.require_all(counts >= 1, counts, "a count of 1 or more", position)
    sums = np.bincount(position, counts, len(num_kept)).astype(np.int64)
    columns.require_all((sums == num_samples) | (num_kept == 0), sums, f"{num_samples} draws")
    levels: NDArray[np.int64] = num_samples - counts
    return levels


def _require_sums(counts: NDArray[np.int64], found: Found, num_samples: int) -> None:
    if not len(counts):
        return
    kept = found.num_kept.astype(np.int64)
    starts = (np.cumsum(kept) - kept)[kept > 0]
    if (np.add.reduceat(counts, starts) != num_samples).any():
        raise ValueError(f"expected {num_samples} draws at every position")
