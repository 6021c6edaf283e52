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
from cache_format.codec.columns import named
from cache_format.codec.plain_columns import COUNTS, KEPT_COLUMNS
from cache_format.codec.row import KeptIds, PackedTokens, Row, check_kept_shapes
from cache_format.codec.targets import kept_ids
from cache_format.codec.targets.kept_ids import Found
from cache_format.codec.targets.kind import Cells
from cache_format.metadata.spec import CacheSpec
from cache_format.metadata.spec_parts.targets import TargetSpec
from cache_format.tables.shared_files import SharedFiles

COLUMNS: tuple[str, ...] = ("num_kept", "kept", "next_logprob")
PLAIN_COLUMNS = (*KEPT_COLUMNS, COUNTS)
sums = kept_ids.sums
figures = kept_ids.figures
preview = kept_ids.preview


def encode(
    row: Row, scored: NDArray[np.bool_], spec: CacheSpec, shared: SharedFiles
) -> dict[str, bytes]:
    """See ``TargetKind.encode``."""
    ids, num_draws, ranks = row.kept, spec.targets.sampling.num_draws, shared.ranks
    check_kept_shapes(ids, spec, has_counts=True, has_draws=False)
    num_ids, position = kept_ids.check_kept_ids(ids, scored, ranks)
    if not np.isneginf(ids.tail_log_mass[scored, -1]).all():
        raise ValueError("tail_log_mass: samples have no tail, expected −inf")
    levels = named("counts", lambda: _levels_of_counts(ids, num_ids, position, num_draws))
    log_z = np.zeros(len(num_ids))
    kept = kept_ids.Kept(kept_ids.to_entries(ids, levels, ranks), log_z, scored)
    return kept_ids.encode(row, kept, _logprobs_of_levels(num_draws), num_draws, spec, ranks)


def decode(cells: Cells, tokens: PackedTokens, spec: CacheSpec, shared: SharedFiles) -> Row:
    """See ``TargetKind.decode``."""
    num_draws = spec.targets.sampling.num_draws
    found = kept_ids.decode(cells, tokens, num_draws, spec)
    # Up to a count of 1: the level of a count of 0 stands for labels that were not drawn.
    logprobs = kept_ids.look_up(found, _logprobs_of_levels(num_draws)[:-1])
    counts = num_draws - found.entries.levels
    named("kept", lambda: _require_sums(counts, found, num_draws))
    no_tail = np.full((len(found.num_ids), 1), -np.inf)
    kept = kept_ids.to_kept_ids(found, logprobs, no_tail, cells, spec, shared.ranks)
    return kept_ids.to_row(tokens, replace(kept, counts=counts.astype(np.uint16)))


def bounds_of_sums(spec: TargetSpec) -> dict[str, tuple[float, float]]:
    """See ``TargetKind.bounds_of_sums``."""
    return kept_ids.bounds_of_sums(spec.sampling.num_draws)


def title(spec: TargetSpec) -> str:
    """See ``TargetKind.title``."""
    return f"{spec.kind}, {spec.sampling.num_draws} draws"


def describe(spec: TargetSpec, figures: Mapping[str, float]) -> str:
    """See ``TargetKind.describe``."""
    return (
        f"{figures['mean_num_kept']:.1f} ids per position, from {spec.sampling.num_draws} draws at "
        f"temperature {1 / spec.sampling.inverse_temperature:g}"
    )


def _logprobs_of_levels(num_draws: int) -> NDArray[np.float64]:
    """The log-probability that each level stands for, [num_draws + 1]; of the last, a quarter of
    a draw."""
    counts = np.arange(num_draws, -1, -1)
    return np.log(np.maximum(counts, 0.25) / num_draws)


def _levels_of_counts(
    ids: KeptIds, num_ids: NDArray[np.int64], position: NDArray[np.int64], num_draws: int
) -> NDArray[np.int64]:
    """The level of each entry, [N]; raises ValueError where counts do not add up."""
    assert ids.counts is not None
    counts = ids.counts.astype(np.int64)
    columns.require_all(counts >= 1, counts, "a count of 1 or more", position)
    sums = np.bincount(position, counts, len(num_ids)).astype(np.int64)
    columns.require_all((sums == num_draws) | (num_ids == 0), sums, f"{num_draws} draws")
    levels: NDArray[np.int64] = num_draws - counts
    return levels


def _require_sums(counts: NDArray[np.int64], found: Found, num_draws: int) -> None:
    if not len(counts):
        return
    kept = found.num_ids.astype(np.int64)
    starts = (np.cumsum(kept) - kept)[kept > 0]
    if (np.add.reduceat(counts, starts) != num_draws).any():
        raise ValueError(f"expected {num_draws} draws at every position")
