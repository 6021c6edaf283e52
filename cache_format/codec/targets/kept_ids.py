"""What kinds of target that keep ids of each position share: four columns, and what they sum to.

``num_kept`` and ``kept`` hold the ids and their levels, ``tail_log_mass`` what the others weigh,
``next_logprob`` the teacher's log-probability of the label, as it differs from what the kept
entries tell of it. In: a row's arrays. Out: the bytes of these columns, or the reverse.

Shapes: T positions, N kept entries of all positions together, n nodes.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from cache_format.codec import columns
from cache_format.codec.entries import Entries, decode_entries, encode_entries, sort_entries
from cache_format.codec.quantizer import to_levels
from cache_format.codec.row import (
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
from cache_format.metadata.vocabulary_ranks import RankTable

COLUMNS: tuple[str, ...] = ("num_kept", "kept", "tail_log_mass", "next_logprob")

_Doubles = NDArray[np.float64]
_T = TypeVar("_T")


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

    num_kept: NDArray[np.uint16]
    """[T]"""
    entries: Entries
    """[N]"""
    tail: _Doubles
    """[T, n], log-masses less s·(log Z − z_max)."""
    tokens: PackedTokens

    @property
    def scored(self) -> NDArray[np.bool_]:
        """[T]"""
        return self.tokens.scored()

    @property
    def has_tail(self) -> NDArray[np.bool_]:
        """[T], whether the position is scored and leaves ids out."""
        return self.scored & ~np.isneginf(self.tail[:, -1])


def from_logits(row: Row, scored: NDArray[np.bool_], targets: TargetSpec, ranks: RankTable) -> Kept:
    """Kept ids whose levels are those of their probabilities; raises ValueError on a bad row."""
    num_kept, position = check_kept_ids(row, scored, ranks)
    named("gaps", lambda: check_gaps(row.gaps, num_kept, position))
    gaps = row.gaps.astype(np.float64)
    log_z = np.zeros(len(num_kept))
    if scored.any():
        starts = (np.cumsum(num_kept) - num_kept)[scored]
        kept_log_mass = np.log(np.add.reduceat(np.exp(-gaps), starts))
        tail = row.tail_log_mass[scored, -1].astype(np.float64)
        log_z[scored] = np.logaddexp(kept_log_mass, tail)
    levels = to_levels(-gaps - log_z[position], targets.num_levels)
    return Kept(to_entries(row, levels, ranks), log_z, scored)


def check_kept_ids(
    row: Row, scored: NDArray[np.bool_], ranks: RankTable
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """How many ids each position keeps, [T], and the position of each, [N].

    Raises ValueError where there are none at a scored position, some at another, or no ids.
    """
    check_num_kept(row.num_kept, scored)
    named("tail_log_mass", lambda: check_tail(row.tail_log_mass, scored))
    num_kept = row.num_kept.astype(np.int64)
    position = np.repeat(np.arange(len(num_kept)), num_kept)
    vocab_size = len(ranks.ids_by_rank)
    named("kept_ids", lambda: columns.require_ids(row.kept_ids, vocab_size, position))
    named("kept_ids", lambda: refuse_repeated(row.kept_ids, position, "is kept twice"))
    return num_kept, position


def to_entries(row: Row, levels: NDArray[np.int64], ranks: RankTable) -> Entries:
    """Kept ids at these levels, [N], in the order in which they are stored."""
    entries = Entries(levels, ranks.ranks_by_id[row.kept_ids].astype(np.int64))
    return sort_entries(entries, row.num_kept.astype(np.int64))


def encode(
    row: Row, kept: Kept, logprobs_of_levels: _Doubles, spec: CacheSpec, ranks: RankTable
) -> dict[str, bytes]:
    """The cells of ``COLUMNS``; ``logprobs_of_levels``, [num_levels + 1], is what a reader takes
    levels for."""
    num_kept, step = row.num_kept.astype(np.int64), spec.targets.log_step
    logprobs = logprobs_of_levels[kept.entries.levels]
    kept_ids = ranks.ids_by_rank[kept.entries.ranks]
    expected = _labels_logprob(row.token_ids[1:], kept_ids, logprobs, num_kept)
    tail = np.where(kept.scored[:, None], row.tail_log_mass, 0.0)
    tail -= kept.log_z[:, None] * np.array(spec.targets.inverse_temperatures)
    next_logprob = np.where(kept.scored, row.next_logprob, np.float32(0))
    return {
        "num_kept": named(
            "num_kept", lambda: columns.encode_num_kept(row.num_kept, spec.targets.top_k)
        ),
        "kept": encode_entries(kept.entries, num_kept, spec.teacher.vocab_size),
        "tail_log_mass": named("tail_log_mass", lambda: columns.encode_tail(tail, step)),
        "next_logprob": named(
            "next_logprob", lambda: columns.encode_next_logprob(next_logprob, expected, step)
        ),
    }


def decode(cells: Cells, tokens: PackedTokens, spec: CacheSpec) -> Found:
    """What the cells hold; raises ValueError that names the column."""
    num_positions, targets = spec.sequence_length, spec.targets
    num_kept = named(
        "num_kept",
        lambda: columns.decode_num_kept(cells["num_kept"], num_positions, targets.top_k),
    )
    scored = tokens.scored()
    if not np.array_equal(num_kept > 0, scored):
        raise ValueError("num_kept: expected ids exactly where document_starts leaves a label")
    counts = num_kept.astype(np.int64)
    entries = named("kept", lambda: decode_entries(cells["kept"], counts, spec.teacher.vocab_size))
    num_nodes = len(targets.inverse_temperatures)
    tail = named(
        "tail_log_mass",
        lambda: columns.decode_tail(
            cells["tail_log_mass"], num_positions, num_nodes, targets.log_step
        ),
    )
    return Found(num_kept, entries, tail, tokens)


def look_up(found: Found, logprobs_of_levels: _Doubles) -> _Doubles:
    """The log-probability of each entry, [N]; raises ValueError if a level stands for none."""
    levels, highest = found.entries.levels, len(logprobs_of_levels) - 1
    if len(levels) and int(levels.max()) > highest:
        raise ValueError(f"kept: expected levels up to {highest}, found {levels.max()}")
    logprobs: _Doubles = logprobs_of_levels[levels]
    return logprobs


def to_row(
    found: Found, logprobs: _Doubles, cells: Cells, spec: CacheSpec, ranks: RankTable
) -> Row:
    """The row of kept ids with these log-probabilities, [N]; raises ValueError naming a column."""
    kept, scored, tail = found.num_kept.astype(np.int64), found.scored, found.tail.copy()
    tokens = found.tokens
    kept_ids = ranks.ids_by_rank[found.entries.ranks]
    first = (np.cumsum(kept) - kept)[scored]
    tail[scored] -= logprobs[first, None] * np.array(spec.targets.inverse_temperatures)
    tail[~scored] = 0.0
    expected = _labels_logprob(tokens.token_ids[1:], kept_ids, logprobs, kept)
    step = spec.targets.log_step
    return Row(
        token_ids=tokens.token_ids,
        document_starts=tokens.document_starts,
        num_kept=found.num_kept,
        kept_ids=kept_ids,
        gaps=(np.repeat(logprobs[first], kept[scored]) - logprobs).astype(np.float32),
        tail_log_mass=tail.astype(np.float32),
        next_logprob=named(
            "next_logprob",
            lambda: columns.decode_next_logprob(cells["next_logprob"], expected, step),
        ),
        sketch=None,
    )


def sums(row: Row, scored: NDArray[np.bool_]) -> TargetSums:
    """See ``TargetKind.sums``."""
    return TargetSums(int(row.num_kept.sum(dtype=np.int64)), _kept_mass(row, scored), None)


def figures(sums: TargetSums, num_scored: int) -> dict[str, float]:
    """See ``TargetKind.figures``."""
    return {
        "mean_kept_mass": sums.kept_mass / num_scored,
        "mean_num_kept": sums.num_kept / num_scored,
    }


def title(spec: TargetSpec) -> str:
    """See ``TargetKind.title``."""
    return f"{spec.kind}, {spec.top_k} ids"


def preview(row: Row, most: int) -> list[dict[str, Any]]:
    """See ``TargetKind.preview``. Probabilities are those at the last node, mostly T = 1."""
    ends = np.cumsum(row.num_kept, dtype=np.int64)
    positions = []
    for t, end in enumerate(ends.tolist()):
        kept = slice(end - int(row.num_kept[t]), end)
        weights = np.exp(-row.gaps[kept].astype(np.float64))
        tail = math.exp(row.tail_log_mass[t, -1])
        total = weights.sum() + tail
        # At positions that are not scored, whose tail is 0, the total is 1.
        probabilities = (weights / total).tolist()
        top = list(zip(row.kept_ids[kept].tolist(), probabilities, strict=True))[:most]
        positions.append(
            {
                "num_kept": int(row.num_kept[t]),
                "tail_mass": float(tail / total),
                "kept": [{"id": token_id, "p": p} for token_id, p in top],
            }
        )
    return positions


def named(column: str, action: Callable[[], _T]) -> _T:
    """What ``action`` gives; its ValueError is raised with the column's name before it."""
    try:
        return action()
    except ValueError as error:
        raise ValueError(f"{column}: {error}") from error


def _kept_mass(row: Row, scored: NDArray[np.bool_]) -> float:
    """Σ over scored positions of the kept ids' share of the mass, at T = 1 or that of samples."""
    if not scored.any():
        return 0.0
    starts = np.cumsum(row.num_kept, dtype=np.int64) - row.num_kept
    kept = np.add.reduceat(np.exp(-row.gaps.astype(np.float64)), starts[scored])
    tail = np.exp(row.tail_log_mass[scored, -1].astype(np.float64))
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
