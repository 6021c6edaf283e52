"""A row's way to the columns of a shard and back.

In: a ``Row`` of NumPy arrays. Out: the bytes of each column (see ``columns.py``), or the reverse.
"""

from collections.abc import Callable, Mapping
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from cache_format.codec import columns
from cache_format.codec.entries import Entries, decode_entries, encode_entries, sort_entries
from cache_format.codec.quantizer import ceilings_of_levels, logprobs_of_levels, to_levels
from cache_format.codec.row import (
    Row,
    check_document_starts,
    check_gaps,
    check_num_kept,
    check_shapes,
    check_tail,
    refuse_repeated,
    scored_positions,
)
from cache_format.codec.samples import KeptLogprobs, check_draws, decode_draws, encode_draws
from cache_format.metadata.spec import CacheSpec
from cache_format.metadata.spec_parts.targets import TargetSpec
from cache_format.metadata.vocabulary_ranks import RankTable

__all__ = ["Encoded", "Row", "decode_row", "encode_row"]

Encoded = Mapping[str, bytes | NDArray[np.int32]]
_T = TypeVar("_T")


def encode_row(row: Row, spec: CacheSpec, ranks: RankTable) -> Encoded:
    """The columns of ``row``; raises ValueError naming column and position if it breaks a rule."""
    check_shapes(row, spec)
    scored = row.scored()
    targets = spec.targets
    check_num_kept(row.num_kept, scored)
    _named("tail_log_mass", lambda: check_tail(row.tail_log_mass, scored))
    next_logprob = np.where(scored, row.next_logprob, np.float32(0))
    kept = row.num_kept.astype(np.int64)
    entries, log_z = _entries_of(row, scored, targets, ranks)
    kept_ids = ranks.ids_by_rank[entries.ranks]
    logprobs = _logprobs_of_levels(targets)[entries.levels]
    expected = _labels_logprob(row.token_ids[1:], kept_ids, logprobs, kept)
    tail = np.where(scored[:, None], row.tail_log_mass, 0.0)
    tail -= log_z[:, None] * np.array(targets.inverse_temperatures)
    step = targets.log_step
    encoded: dict[str, bytes | NDArray[np.int32]] = {
        "token_ids": _named("token_ids", lambda: columns.encode_token_ids(row.token_ids, ranks)),
        "document_starts": row.document_starts.astype(np.int32),
        "num_kept": _named(
            "num_kept", lambda: columns.encode_num_kept(row.num_kept, targets.top_k)
        ),
        "kept": encode_entries(entries, kept, spec.teacher.vocab_size),
        "tail_log_mass": _named("tail_log_mass", lambda: columns.encode_tail(tail, step)),
        "next_logprob": _named(
            "next_logprob", lambda: columns.encode_next_logprob(next_logprob, expected, step)
        ),
    }
    if row.draws is not None:
        encoded["drawn"] = _named(
            "draws", lambda: _encode_draws(row, scored, entries.levels, log_z, targets, ranks)
        )
    if row.sketch is not None:
        sketch = np.where(scored[:, None], row.sketch, np.float32(0))
        numbers, scale = _named("sketch", lambda: columns.encode_sketch(sketch, spec.sketch.dtype))
        encoded |= {"sketch": numbers, "sketch_scale": scale}
    return encoded


def decode_row(
    encoded: Mapping[str, bytes | memoryview],
    document_starts: NDArray[np.int32],
    spec: CacheSpec,
    ranks: RankTable,
) -> Row:
    """The row whose columns are ``encoded``; ``sketch`` is None unless its columns are there.

    Raises ValueError naming the column if the bytes are not what the spec calls for.
    """
    num_positions, targets = spec.sequence_length, spec.targets
    check_document_starts(document_starts, num_positions)
    num_kept = _named(
        "num_kept",
        lambda: columns.decode_num_kept(encoded["num_kept"], num_positions, targets.top_k),
    )
    scored = scored_positions(document_starts, num_positions)
    if not np.array_equal(num_kept > 0, scored):
        raise ValueError("num_kept: expected ids exactly where document_starts leaves a label")
    kept = num_kept.astype(np.int64)
    entries = _named("kept", lambda: decode_entries(encoded["kept"], kept, spec.teacher.vocab_size))
    num_nodes = len(targets.inverse_temperatures)
    tail = _named(
        "tail_log_mass",
        lambda: columns.decode_tail(
            encoded["tail_log_mass"], num_positions, num_nodes, targets.log_step
        ),
    )
    logprobs = _named("kept", lambda: _logprobs_of(entries.levels, kept, targets))
    is_sampled = targets.kind == "sampled"
    kept_ids = ranks.ids_by_rank[entries.ranks]
    first = (np.cumsum(kept) - kept)[scored]
    has_tail = scored & ~np.isneginf(tail[:, -1])
    if is_sampled and has_tail.any():
        raise ValueError("tail_log_mass: expected none: samples leave nothing out")
    tail[scored] -= logprobs[first, None] * np.array(targets.inverse_temperatures)
    tail[~scored] = 0.0
    token_ids = _named(
        "token_ids",
        lambda: columns.decode_token_ids(encoded["token_ids"], num_positions + 1, ranks),
    )
    expected = _labels_logprob(token_ids[1:], kept_ids, logprobs, kept)
    next_logprob = _named(
        "next_logprob",
        lambda: columns.decode_next_logprob(encoded["next_logprob"], expected, targets.log_step),
    )
    draws = None
    if targets.num_draws is not None:
        known = _kept_logprobs(entries.levels, kept, has_tail, targets)
        num_draws = targets.num_draws
        draws = _named("drawn", lambda: decode_draws(encoded["drawn"], known, num_draws, ranks))
    return Row(
        token_ids=token_ids,
        document_starts=document_starts,
        num_kept=num_kept,
        kept_ids=kept_ids,
        gaps=(np.repeat(logprobs[first], kept[scored]) - logprobs).astype(np.float32),
        counts=(targets.num_levels - entries.levels).astype(np.uint16) if is_sampled else None,
        draws=draws,
        tail_log_mass=tail.astype(np.float32),
        next_logprob=next_logprob,
        sketch=_sketch_of(encoded, spec),
    )


def _sketch_of(
    encoded: Mapping[str, bytes | memoryview], spec: CacheSpec
) -> NDArray[np.float32] | None:
    """The sketch, [T, d], if its columns are there."""
    if "sketch" not in encoded:
        return None
    shape = (spec.sequence_length, spec.sketch.dim)
    return _named(
        "sketch",
        lambda: columns.decode_sketch(
            encoded["sketch"], encoded["sketch_scale"], shape, spec.sketch.dtype
        ),
    )


def _encode_draws(
    row: Row,
    scored: NDArray[np.bool_],
    levels: NDArray[np.int64],
    log_z: NDArray[np.float64],
    targets: TargetSpec,
    ranks: RankTable,
) -> bytes:
    """The draws of a row whose kept entries are stored at ``levels``."""
    assert row.draws is not None
    assert targets.num_draws is not None
    draws, kept = row.draws, row.num_kept.astype(np.int64)
    has_tail = scored & ~np.isneginf(row.tail_log_mass[:, -1])
    last_gaps = np.zeros(len(kept), np.float32)
    last_gaps[scored] = row.gaps[np.cumsum(kept)[scored] - 1]
    check_draws(draws, has_tail, last_gaps, targets.num_draws, len(ranks.ids_by_rank))
    position = np.repeat(np.arange(len(kept)), kept)
    position_of_drawn = np.repeat(np.arange(len(kept)), draws.num_ids)
    refuse_repeated(
        np.concatenate([row.kept_ids, draws.ids]),
        np.concatenate([position, position_of_drawn]),
        "is drawn twice, or drawn and kept",
    )
    known = _kept_logprobs(levels, kept, has_tail, targets)
    return encode_draws(draws, log_z, known, targets.num_draws, ranks)


def _kept_logprobs(
    levels: NDArray[np.int64],
    kept: NDArray[np.int64],
    has_tail: NDArray[np.bool_],
    targets: TargetSpec,
) -> KeptLogprobs:
    """What the kept entries, in the order in which they are stored, tell of the drawn ones."""
    largest, ceiling = np.zeros(len(kept)), np.zeros(len(kept))
    ends = np.cumsum(kept)[has_tail]
    first_levels = levels[ends - kept[has_tail]]
    largest[has_tail] = logprobs_of_levels(targets.num_levels)[first_levels]
    ceiling[has_tail] = ceilings_of_levels(targets.num_levels)[levels[ends - 1]]
    return KeptLogprobs(has_tail, largest, ceiling)


def _logprobs_of_levels(targets: TargetSpec) -> NDArray[np.float64]:
    """The log-probability that each level stands for, [num_levels + 1]."""
    if targets.kind == "sampled":
        draws = np.arange(targets.num_levels, -1, -1)
        return np.log(np.maximum(draws, 0.25) / targets.num_levels)
    return logprobs_of_levels(targets.num_levels)


def _logprobs_of(
    levels: NDArray[np.int64], kept: NDArray[np.int64], targets: TargetSpec
) -> NDArray[np.float64]:
    """The log-probability of each entry, [N]; raises ValueError if levels break a rule."""
    highest = targets.num_levels - (targets.kind == "sampled")
    if len(levels) and int(levels.max()) > highest:
        raise ValueError(f"expected levels up to {highest}, found {levels.max()}")
    if targets.kind == "sampled" and len(levels):
        starts = (np.cumsum(kept) - kept)[kept > 0]
        draws = np.add.reduceat(targets.num_levels - levels, starts)
        if (draws != targets.num_levels).any():
            raise ValueError(f"expected {targets.num_levels} draws at every position")
    logprobs: NDArray[np.float64] = _logprobs_of_levels(targets)[levels]
    return logprobs


def _labels_logprob(
    labels: NDArray[np.int32],
    kept_ids: NDArray[np.int32],
    logprobs: NDArray[np.float64],
    kept: NDArray[np.int64],
) -> NDArray[np.float64]:
    """What the kept entries tell of each label's log-probability, [T].

    That of its entry; or of the position's last entry, if the label is not kept.
    """
    expected = np.zeros(len(labels))
    ends = np.cumsum(kept)
    expected[kept > 0] = logprobs[ends[kept > 0] - 1]
    is_label = np.flatnonzero(kept_ids == np.repeat(labels, kept))
    expected[np.searchsorted(ends, is_label, side="right")] = logprobs[is_label]
    return expected


def _entries_of(
    row: Row, scored: NDArray[np.bool_], targets: TargetSpec, ranks: RankTable
) -> tuple[Entries, NDArray[np.float64]]:
    """The kept entries as they are stored, and log Z − z_max of each position, [T]."""
    vocab_size = len(ranks.ids_by_rank)
    kept = row.num_kept.astype(np.int64)
    position = np.repeat(np.arange(len(kept)), kept)
    _named("kept_ids", lambda: columns.require_ids(row.kept_ids, vocab_size, position))
    _named("kept_ids", lambda: refuse_repeated(row.kept_ids, position, "is kept twice"))
    log_z = np.zeros(len(kept))
    if targets.kind == "sampled":
        left_out = row.tail_log_mass[scored, -1]
        if not np.isneginf(left_out).all():
            raise ValueError("tail_log_mass: samples leave nothing out, expected −inf")
        levels = _named("counts", lambda: _levels_of_counts(row, kept, targets.num_levels))
    else:
        _named("gaps", lambda: check_gaps(row.gaps, kept, position))
        gaps = row.gaps.astype(np.float64)
        if scored.any():
            starts = (np.cumsum(kept) - kept)[scored]
            kept_log_mass = np.log(np.add.reduceat(np.exp(-gaps), starts))
            tail = row.tail_log_mass[scored, -1].astype(np.float64)
            log_z[scored] = np.logaddexp(kept_log_mass, tail)
        levels = to_levels(-gaps - log_z[position], targets.num_levels)
    entries = Entries(levels, ranks.ranks_by_id[row.kept_ids].astype(np.int64))
    return sort_entries(entries, kept), log_z


def _levels_of_counts(row: Row, kept: NDArray[np.int64], num_draws: int) -> NDArray[np.int64]:
    assert row.counts is not None
    counts = row.counts.astype(np.int64)
    position = np.repeat(np.arange(len(kept)), kept)
    columns.require_all(counts >= 1, counts, "a count of 1 or more", position)
    sums = np.bincount(position, counts, len(kept)).astype(np.int64)
    columns.require_all((sums == num_draws) | (kept == 0), sums, f"{num_draws} draws")
    levels: NDArray[np.int64] = num_draws - counts
    return levels


def _named(column: str, action: Callable[[], _T]) -> _T:
    try:
        return action()
    except ValueError as error:
        raise ValueError(f"{column}: {error}") from error
