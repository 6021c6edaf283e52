"""What kinds of target that keep ids of each position share: their columns, and what they sum to.

``num_kept`` and ``kept`` hold the ids and their levels, ``next_logprob`` the teacher's
log-probability of the label, as it differs from what the kept entries tell of it, and
``tail_log_mass`` what the other ids weigh. In: a row's arrays. Out: the bytes of these columns, or
the reverse.

Shapes: T positions, N kept entries of all positions together, n nodes.
"""

import math
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from cache_format.codec import columns
from cache_format.codec.columns import named
from cache_format.codec.entries import Entries, decode_entries, encode_entries, sort_entries
from cache_format.codec.quantizer import to_levels
from cache_format.codec.row import (
    KeptIds,
    PackedTokens,
    Row,
    check_gaps,
    check_num_kept,
    check_tail,
    refuse_repeated,
)
from cache_format.codec.targets.kind import Cells, TargetSums
from cache_format.metadata.spec import CacheSpec
from cache_format.metadata.spec_parts.targets import TargetSpec
from cache_format.tables.vocabulary_ranks import RankTable

_Doubles = NDArray[np.float64]


class Kept(NamedTuple):
    """A row's kept ids on their way into a shard."""

    entries: Entries
    """[N], as they are stored."""
    log_z: _Doubles
    """[T], log Z − z_max, exactly."""
    scored: NDArray[np.bool_]
    """[T]"""


class Found(NamedTuple):
    """What the columns of a row hold of its kept ids, before levels become log-probabilities."""

    num_ids: NDArray[np.uint16]
    """[T]"""
    entries: Entries
    """[N]"""
    tokens: PackedTokens
    scored: NDArray[np.bool_]
    """[T]"""


def from_logits(
    ids: KeptIds, scored: NDArray[np.bool_], targets: TargetSpec, ranks: RankTable
) -> Kept:
    """Kept ids whose levels are those of their probabilities; raises ValueError on bad ids."""
    num_ids, position = check_kept_ids(ids, scored, ranks)
    named("gaps", lambda: check_gaps(ids.gaps, num_ids, position))
    gaps = ids.gaps.astype(np.float64)
    log_z = np.zeros(len(num_ids))
    if scored.any():
        starts = (np.cumsum(num_ids) - num_ids)[scored]
        kept_log_mass = np.log(np.add.reduceat(np.exp(-gaps), starts))
        tail = ids.tail_log_mass[scored, -1].astype(np.float64)
        log_z[scored] = np.logaddexp(kept_log_mass, tail)
    levels = to_levels(-gaps - log_z[position], targets.logits.num_levels)
    return Kept(to_entries(ids, levels, ranks), log_z, scored)


def check_kept_ids(
    ids: KeptIds, scored: NDArray[np.bool_], ranks: RankTable
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """How many ids each position keeps, [T], and the position of each, [N].

    Raises ValueError where there are none at a scored position, some at another, or no ids.
    """
    check_num_kept(ids.num_ids, scored)
    named("tail_log_mass", lambda: check_tail(ids.tail_log_mass, scored))
    num_ids = ids.num_ids.astype(np.int64)
    position = np.repeat(np.arange(len(num_ids)), num_ids)
    vocab_size = len(ranks.ids_by_rank)
    named("kept_ids", lambda: columns.require_ids(ids.ids, vocab_size, position))
    named("kept_ids", lambda: refuse_repeated(ids.ids, position, "is kept twice"))
    return num_ids, position


def to_entries(ids: KeptIds, levels: NDArray[np.int64], ranks: RankTable) -> Entries:
    """Kept ids at these levels, [N], in the order in which they are stored."""
    entries = Entries(levels, ranks.ranks_by_id[ids.ids].astype(np.int64))
    return sort_entries(entries, ids.num_ids.astype(np.int64))


def encode(
    row: Row,
    kept: Kept,
    logprobs_of_levels: _Doubles,
    most_ids: int,
    spec: CacheSpec,
    ranks: RankTable,
) -> dict[str, bytes]:
    """The cells of ``num_kept``, ``kept`` and ``next_logprob``.

    ``logprobs_of_levels``, [num_levels + 1], is what a reader takes levels for; a position keeps
    ``most_ids`` at most.
    """
    ids, step = row.kept, spec.targets.log_step
    num_ids = ids.num_ids.astype(np.int64)
    logprobs = logprobs_of_levels[kept.entries.levels]
    stored_ids = ranks.ids_by_rank[kept.entries.ranks]
    expected = _labels_logprob(row.token_ids[1:], stored_ids, logprobs, num_ids)
    next_logprob = np.where(kept.scored, ids.next_logprob, np.float32(0))
    return {
        "num_kept": named("num_kept", lambda: columns.encode_num_kept(ids.num_ids, most_ids)),
        "kept": encode_entries(kept.entries, num_ids, spec.teacher.vocab_size),
        "next_logprob": named(
            "next_logprob", lambda: columns.encode_next_logprob(next_logprob, expected, step)
        ),
    }


def encode_tail(ids: KeptIds, kept: Kept, targets: TargetSpec) -> bytes:
    """The cell of ``tail_log_mass``."""
    tail = np.where(kept.scored[:, None], ids.tail_log_mass, 0.0)
    tail -= kept.log_z[:, None] * np.array(targets.logits.inverse_temperatures)
    return named("tail_log_mass", lambda: columns.encode_tail(tail, targets.log_step))


def decode(cells: Cells, tokens: PackedTokens, most_ids: int, spec: CacheSpec) -> Found:
    """What ``num_kept`` and ``kept`` hold; raises ValueError that names the column."""
    num_ids = named(
        "num_kept",
        lambda: columns.decode_num_kept(cells["num_kept"], spec.sequence_length, most_ids),
    )
    scored = tokens.scored()
    if not np.array_equal(num_ids > 0, scored):
        raise ValueError("num_kept: expected ids exactly where a position is scored")
    counts = num_ids.astype(np.int64)
    entries = named("kept", lambda: decode_entries(cells["kept"], counts, spec.teacher.vocab_size))
    return Found(num_ids, entries, tokens, scored)


def decode_tail(cells: Cells, spec: CacheSpec) -> _Doubles:
    """Log-masses less s·(log Z − z_max), [T, n], as ``tail_log_mass`` holds them."""
    num_positions, targets = spec.sequence_length, spec.targets
    num_nodes = len(targets.logits.inverse_temperatures)
    return named(
        "tail_log_mass",
        lambda: columns.decode_tail(
            cells["tail_log_mass"], num_positions, num_nodes, targets.log_step
        ),
    )


def look_up(found: Found, logprobs_of_levels: _Doubles) -> _Doubles:
    """The log-probability of each entry, [N]; raises ValueError if a level stands for none."""
    levels, highest = found.entries.levels, len(logprobs_of_levels) - 1
    if len(levels) and int(levels.max()) > highest:
        raise ValueError(f"kept: expected levels up to {highest}, found {levels.max()}")
    logprobs: _Doubles = logprobs_of_levels[levels]
    return logprobs


def to_kept_ids(
    found: Found,
    logprobs: _Doubles,
    tail: _Doubles,
    cells: Cells,
    spec: CacheSpec,
    ranks: RankTable,
) -> KeptIds:
    """Kept ids with these log-probabilities, [N], and the log-masses of the others, [T, n], less
    s·(log Z − z_max); raises ValueError naming a column."""
    num_ids, scored = found.num_ids.astype(np.int64), found.scored
    ids = ranks.ids_by_rank[found.entries.ranks]
    first = (np.cumsum(num_ids) - num_ids)[scored]
    relative = tail.copy()
    if spec.targets.kept is not None:
        nodes = np.array(spec.targets.kept.inverse_temperatures)
        relative[scored] -= logprobs[first, None] * nodes
    relative[~scored] = 0.0
    expected = _labels_logprob(found.tokens.token_ids[1:], ids, logprobs, num_ids)
    step = spec.targets.log_step
    return KeptIds(
        num_ids=found.num_ids,
        ids=ids,
        gaps=(np.repeat(logprobs[first], num_ids[scored]) - logprobs).astype(np.float32),
        tail_log_mass=relative.astype(np.float32),
        next_logprob=named(
            "next_logprob",
            lambda: columns.decode_next_logprob(cells["next_logprob"], expected, step),
        ),
    )


def to_row(tokens: PackedTokens, kept_ids: KeptIds) -> Row:
    """The row of these tokens and ids, without a sketch."""
    return Row(
        token_ids=tokens.token_ids,
        document_starts=tokens.document_starts,
        is_context=tokens.is_context,
        kept_ids=kept_ids,
    )


def bounds_of_sums(most_ids: int) -> dict[str, tuple[float, float]]:
    """See ``TargetKind.bounds_of_sums``; of positions that keep ``most_ids`` at most."""
    return {
        "num_kept": (1, most_ids),
        "kept_mass": (0, 1),
        "next_logprob": (columns.MIN_LOGPROB, 0),
    }


def sums(row: Row, scored: NDArray[np.bool_]) -> TargetSums:
    """See ``TargetKind.sums``."""
    ids = row.kept
    return {
        "num_kept": float(ids.num_ids.sum(dtype=np.int64)),
        "kept_mass": _kept_mass(ids, scored),
        "next_logprob": math.fsum(ids.next_logprob[scored].tolist()),
    }


def figures(sums: TargetSums, num_scored: int) -> dict[str, float]:
    """See ``TargetKind.figures``."""
    return {
        "loss": -sums["next_logprob"] / num_scored,
        "mean_kept_mass": sums["kept_mass"] / num_scored,
        "mean_num_kept": sums["num_kept"] / num_scored,
    }


def preview(row: Row, most: int) -> list[dict[str, Any]]:
    """See ``TargetKind.preview``. Probabilities are those at the last node, mostly T = 1."""
    ids = row.kept
    ends = np.cumsum(ids.num_ids, dtype=np.int64)
    positions = []
    for t, end in enumerate(ends.tolist()):
        kept = slice(end - int(ids.num_ids[t]), end)
        weights = np.exp(-ids.gaps[kept].astype(np.float64))
        tail = math.exp(ids.tail_log_mass[t, -1])
        total = weights.sum() + tail
        # At positions that are not scored, whose tail is 0, the total is 1.
        probabilities = (weights / total).tolist()
        top = list(zip(ids.ids[kept].tolist(), probabilities, strict=True))[:most]
        positions.append(
            {
                "p_next": math.exp(ids.next_logprob[t]),
                "num_kept": int(ids.num_ids[t]),
                "tail_mass": float(tail / total),
                "kept": [{"id": token_id, "p": p} for token_id, p in top],
            }
        )
    return positions


def _kept_mass(ids: KeptIds, scored: NDArray[np.bool_]) -> float:
    """Σ over scored positions of the kept ids' share of the mass, at T = 1 or that of samples."""
    if not scored.any():
        return 0.0
    starts = np.cumsum(ids.num_ids, dtype=np.int64) - ids.num_ids
    kept = np.add.reduceat(np.exp(-ids.gaps.astype(np.float64)), starts[scored])
    tail = np.exp(ids.tail_log_mass[scored, -1].astype(np.float64))
    return math.fsum((kept / (kept + tail)).tolist())


def _labels_logprob(
    labels: NDArray[np.int32],
    kept_ids: NDArray[np.int32],
    logprobs: _Doubles,
    kept: NDArray[np.int64],
) -> _Doubles:
    """What the kept entries tell of each label's log-probability, [T].

    That of its entry; or of the position's last entry, if the label is not kept.
    """
    expected = np.zeros(len(labels))
    ends = np.cumsum(kept)
    expected[kept > 0] = logprobs[ends[kept > 0] - 1]
    is_label = np.flatnonzero(kept_ids == np.repeat(labels, kept))
    expected[np.searchsorted(ends, is_label, side="right")] = logprobs[is_label]
    return expected
