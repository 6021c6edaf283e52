"""Ids drawn from the tail of each position: what the kept ids leave out, by random samples of it.

At every scored position that leaves ids out, m of them are drawn with replacement, in proportion to
exp(s z) for one inverse temperature s. Counts over m estimate the tail's distribution at s without
bias; with the gaps, the samples can be weighed for any other. Stored are m entries for a position,
an id as often as it was drawn, through ``entries.py``: so their number says itself, and a count
costs nothing where it is 1.

An entry's level is how far its log-probability lies below a number that the position's last kept
entry tells, in steps of 1/8 nat; no sample lies above it. In: a row's samples, with what the kept
entries say of probabilities. Out: the bytes of the column ``drawn``, or the reverse.

Shapes: T positions, M distinct ids drawn at all positions together, E samples.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from cache_format.codec import columns
from cache_format.codec.entries import Entries, decode_entries, encode_entries, sort_entries
from cache_format.tables.vocabulary_ranks import RankTable

STEPS_PER_NAT = 8
"""Steps of a drawn id's log-probability; it is off by half of one at most."""
_MAX_LEVEL = 255
_ROUNDING_NATS = 1e-3

_Ints = NDArray[np.int64]
_Doubles = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True, eq=False)
class TailSamples:
    """Ids drawn with replacement from the ids that are not kept, position after position.

    On the way in those of a position may come in any order, on the way out the likeliest come
    first.
    """

    num_ids: NDArray[np.uint16]
    """[T], distinct ids drawn; 0 where the position is not scored or leaves nothing out."""
    ids: NDArray[np.int32]
    """[M]"""
    counts: NDArray[np.uint16]
    """[M], how often each was drawn; at a position they add up to ``targets.draws.num_draws``."""
    gaps: NDArray[np.float32]
    """[M], the largest logit minus this one, nats at T = 1; on the way out off by 1/16 and what the
    largest is off by, so that they may lie a little below 0."""


class KeptLogprobs(NamedTuple):
    """What the kept entries, as a reader decodes them, tell of a row's drawn ids."""

    has_tail: NDArray[np.bool_]
    """[T], whether the position is scored and leaves ids out."""
    largest: _Doubles
    """[T], decoded log-probability of the first kept id."""
    ceiling: _Doubles
    """[T], what no log-probability of an id that is not kept is above."""


def encode_samples(
    samples: TailSamples, log_z: _Doubles, kept: KeptLogprobs, num_samples: int, ranks: RankTable
) -> bytes:
    """The samples as they are stored, ``log_z`` of [T] being log Z − z_max, exactly."""
    num_ids = samples.num_ids.astype(np.int64)
    position = np.repeat(np.arange(len(num_ids)), num_ids)
    counts = samples.counts.astype(np.int64)
    logprobs = -samples.gaps.astype(np.float64) - log_z[position]
    below = np.rint((kept.ceiling[position] - logprobs) * STEPS_PER_NAT)
    levels = np.clip(below, 0, _MAX_LEVEL).astype(np.int64)
    num_entries = np.where(kept.has_tail, num_samples, 0)
    distinct = Entries(levels, ranks.ranks_by_id[samples.ids].astype(np.int64))
    entries = Entries(*(np.repeat(column, counts) for column in distinct))
    stored = sort_entries(entries, num_entries)
    return encode_entries(stored, num_entries, len(ranks.ids_by_rank), least_distance=0)


def decode_samples(
    data: bytes | memoryview, kept: KeptLogprobs, num_samples: int, ranks: RankTable
) -> TailSamples:
    """The samples in ``data``; raises ValueError if it is not what they are written as."""
    num_entries = np.where(kept.has_tail, num_samples, 0)
    entries = decode_entries(data, num_entries, len(ranks.ids_by_rank), least_distance=0)
    is_new = np.ones(len(entries.ranks), bool)
    is_new[1:] = np.diff(entries.ranks) != 0
    is_new[::num_samples] = True  # where the next position with a tail begins
    first = np.flatnonzero(is_new)
    num_ids = np.zeros(len(num_entries), np.int64)
    num_ids[kept.has_tail] = is_new.reshape(-1, num_samples).sum(axis=1)
    position = np.repeat(np.arange(len(num_ids)), num_ids)
    logprobs = kept.ceiling[position] - entries.levels[first] / STEPS_PER_NAT
    return TailSamples(
        num_ids=num_ids.astype(np.uint16),
        ids=ranks.ids_by_rank[entries.ranks[first]],
        counts=np.diff(first, append=len(is_new)).astype(np.uint16),
        gaps=(kept.largest[position] - logprobs).astype(np.float32),
    )


def check_samples(
    samples: TailSamples,
    has_tail: NDArray[np.bool_],
    last_gaps: NDArray[np.float32],
    num_samples: int,
    vocab_size: int,
) -> None:
    """Raise ValueError naming the position at which samples break a rule.

    ``last_gaps``, [T], are those of each position's last kept id, below which none is drawn.
    """
    num_ids = samples.num_ids.astype(np.int64)
    _check_shapes(samples, len(has_tail), int(num_ids.sum()))
    position = np.repeat(np.arange(len(num_ids)), num_ids)
    columns.require_ids(samples.ids, vocab_size, position)
    counts = samples.counts.astype(np.int64)
    columns.require_all(counts >= 1, counts, "a count of 1 or more", position)
    sums = np.bincount(position, counts, len(num_ids)).astype(np.int64)
    expected = np.where(has_tail, num_samples, 0)
    columns.require_all(
        sums == expected, sums, f"{num_samples} draws where ids are left out, otherwise 0"
    )
    gaps = samples.gaps
    columns.require_all(np.isfinite(gaps), gaps, "a finite gap", position)
    is_below = gaps >= last_gaps[position] - _ROUNDING_NATS
    columns.require_all(is_below, gaps, "a gap of at least that of the last kept id", position)


def _check_shapes(samples: TailSamples, num_positions: int, num_ids: int) -> None:
    expected = {"num_ids": num_positions, "ids": num_ids, "counts": num_ids, "gaps": num_ids}
    for name, length in expected.items():
        found = getattr(samples, name).shape
        if found != (length,):
            raise ValueError(f"{name}: expected shape ({length},), found {found}")
