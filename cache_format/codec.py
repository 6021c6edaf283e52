"""One row of a cache, and its way to the columns of a shard and back.

In: a ``Row`` of NumPy arrays. Out: the bytes of each column (see ``columns.py``), or the reverse.
Called by the writer and the reader. Position t of a row is the prediction of ``token_ids[t + 1]``.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from cache_format import columns
from cache_format.entries import Entries, decode_entries, encode_entries, sort_entries
from cache_format.levels import logprobs_of_levels, to_levels
from cache_format.ranks import RankTable
from cache_format.spec import CacheSpec, TargetSpec

Encoded = Mapping[str, bytes | NDArray[np.int32]]
_T = TypeVar("_T")


@dataclass(frozen=True, kw_only=True, eq=False)
class Row:
    """One packed sequence of T positions and what the teacher said at each.

    N is the number of kept entries of all positions together, n the number of nodes, d the width
    of the sketch. At positions that are not scored ``num_kept`` is 0 and the other targets are
    unspecified on the way in, 0 on the way out.
    """

    token_ids: NDArray[np.int32]
    """[T + 1]"""
    document_starts: NDArray[np.int32]
    """Rising indices from 1 to T into token_ids at which a document begins; 0 always does."""
    num_kept: NDArray[np.uint16]
    """[T]"""
    kept_ids: NDArray[np.int32]
    """[N], for each position in order of falling logit; on the way out, those of one level in order
    of falling frequency."""
    gaps: NDArray[np.float32]
    """[N], the largest logit minus this one, nats at T = 1; the first of a position is 0."""
    counts: NDArray[np.uint16] | None = None
    """[N], how often each id was drawn where targets are samples; ``gaps`` are then
    log(largest count / count) and the tail is empty, so that softmax(−gaps) = counts / draws."""
    tail_log_mass: NDArray[np.float32]
    """[T, n], log Σ exp((z_j − z_max)·s) over the ids not kept; −inf where none is left out."""
    next_logprob: NDArray[np.float32]
    """[T], the teacher's log-probability of the next token at T = 1."""
    sketch: NDArray[np.float32] | None
    """[T, d], or None without hidden states."""

    def scored(self) -> NDArray[np.bool_]:
        """[T], whether the next token belongs to the position's document."""
        return _scored(self.document_starts, len(self.token_ids) - 1)


def encode_row(row: Row, spec: CacheSpec, ranks: RankTable) -> Encoded:
    """The columns of ``row``; raises ValueError naming column and position if it breaks a rule."""
    _check_shapes(row, spec)
    scored = row.scored()
    targets = spec.targets
    _check_kept(row, scored)
    _named("tail_log_mass", lambda: _check_tail(row.tail_log_mass, scored))
    next_logprob = np.where(scored, row.next_logprob, np.float32(0))
    entries, log_z = _entries_of(row, scored, targets, ranks)
    kept = row.num_kept.astype(np.int64)
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
    _check_document_starts(document_starts, num_positions)
    num_kept = _named(
        "num_kept",
        lambda: columns.decode_num_kept(encoded["num_kept"], num_positions, targets.top_k),
    )
    scored = _scored(document_starts, num_positions)
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
    if is_sampled and not np.isneginf(tail[scored]).all():
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
    return Row(
        token_ids=token_ids,
        document_starts=document_starts,
        num_kept=num_kept,
        kept_ids=kept_ids,
        gaps=(np.repeat(logprobs[first], kept[scored]) - logprobs).astype(np.float32),
        counts=(targets.num_levels - entries.levels).astype(np.uint16) if is_sampled else None,
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
    _refuse_repeated(row.kept_ids, position)
    log_z = np.zeros(len(kept))
    if targets.kind == "sampled":
        left_out = row.tail_log_mass[scored, -1]
        if not np.isneginf(left_out).all():
            raise ValueError("tail_log_mass: samples leave nothing out, expected −inf")
        levels = _named("counts", lambda: _levels_of_counts(row, kept, targets.num_levels))
    else:
        _named("gaps", lambda: _check_gaps(row.gaps, kept, position))
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


def _check_gaps(
    gaps: NDArray[np.float32], kept: NDArray[np.int64], position: NDArray[np.int64]
) -> None:
    columns.require_all(np.isfinite(gaps) & (gaps >= 0), gaps, "a finite gap ≥ 0", position)
    starts = (np.cumsum(kept) - kept)[kept > 0]
    columns.require_all(gaps[starts] == 0, gaps[starts], "a first gap of 0", position[starts])
    falls = np.diff(gaps, prepend=np.float32(0)) < 0
    falls[starts] = False
    columns.require_all(~falls, gaps, "gaps that do not fall along the rank", position)


def _check_tail(tail: NDArray[np.float32], scored: NDArray[np.bool_]) -> None:
    worst = np.where(scored[:, None], tail, np.float32(0)).max(axis=1)  # NaN wherever there is one
    columns.require_all(worst < np.inf, worst, "log-masses, numbers or −inf")


def _scored(document_starts: NDArray[np.int32], num_positions: int) -> NDArray[np.bool_]:
    mask = np.ones(num_positions, bool)
    mask[document_starts - 1] = False
    return mask


def _check_shapes(row: Row, spec: CacheSpec) -> None:
    num_positions = spec.sequence_length
    expected: dict[str, tuple[int, ...]] = {
        "token_ids": (num_positions + 1,),
        "num_kept": (num_positions,),
        "tail_log_mass": (num_positions, len(spec.targets.inverse_temperatures)),
        "next_logprob": (num_positions,),
    }
    for name, is_there, kind in (
        ("sketch", spec.sketch.kind != "none", spec.sketch.kind),
        ("counts", spec.targets.kind == "sampled", spec.targets.kind),
    ):
        if (getattr(row, name) is not None) != is_there:
            found = "one" if getattr(row, name) is not None else "none"
            raise ValueError(f"{name}: the spec says {kind!r}, but the row has {found}")
    num_entries = int(row.num_kept.sum(dtype=np.int64))
    expected |= {"kept_ids": (num_entries,), "gaps": (num_entries,)}
    if row.sketch is not None:
        expected["sketch"] = (num_positions, spec.sketch.dim)
    if row.counts is not None:
        expected["counts"] = (num_entries,)
    for name, shape in expected.items():
        found = getattr(row, name).shape
        if found != shape:
            raise ValueError(f"{name}: expected shape {shape}, found {found}")
    _check_document_starts(row.document_starts, num_positions)


def _check_document_starts(starts: NDArray[np.int32], num_positions: int) -> None:
    if starts.ndim != 1 or not np.issubdtype(starts.dtype, np.integer):
        raise ValueError("document_starts: expected one dimension of integers")
    bounded = np.concatenate([[0], starts.astype(np.int64), [num_positions + 1]])
    if not (np.diff(bounded) > 0).all():
        raise ValueError(
            f"document_starts: expected rising indices from 1 to {num_positions}, "
            f"found {starts.tolist()[:20]}"
        )


def _check_kept(row: Row, scored: NDArray[np.bool_]) -> None:
    """Scored positions keep at least one id, others none."""
    wrong = (row.num_kept > 0) != scored
    if wrong.any():
        position = int(np.argmax(wrong))
        expected = "at least 1 where scored" if scored[position] else "0 where not scored"
        raise ValueError(
            f"num_kept: position {position}: expected {expected}, found {row.num_kept[position]}"
        )


def _refuse_repeated(kept_ids: NDArray[np.int32], position: NDArray[np.int64]) -> None:
    keys = np.sort((position << 24) | kept_ids)
    twice = keys[1:] == keys[:-1]
    if twice.any():
        key = int(keys[np.argmax(twice)])
        raise ValueError(f"kept_ids: position {key >> 24}: id {key & 0xFFFFFF} is kept twice")


def _named(column: str, action: Callable[[], _T]) -> _T:
    try:
        return action()
    except ValueError as error:
        raise ValueError(f"{column}: {error}") from error
