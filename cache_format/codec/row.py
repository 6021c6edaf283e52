"""One row of a cache, and the rules that its arrays keep.

A row is what goes into a shard and comes out of it, see ``row_codec.py``. Position t of a row is
the prediction of ``token_ids[t + 1]``. The checks raise ValueError that names the position.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from cache_format.codec import columns
from cache_format.codec.samples import TailSamples
from cache_format.metadata.spec import CacheSpec


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
    log(largest count / count) and the tail is empty, so that softmax(−gaps) = counts / draws, which
    estimates the teacher's distribution at the temperature of the one node without bias."""
    draws: TailSamples | None = None
    """Ids drawn from the tail, where targets are the largest logits and samples of the rest."""
    tail_log_mass: NDArray[np.float32]
    """[T, n], log Σ exp((z_j − z_max)·s) over the ids not kept; −inf where none is left out."""
    next_logprob: NDArray[np.float32]
    """[T], the teacher's log-probability of the next token at T = 1."""
    sketch: NDArray[np.float32] | None
    """[T, d], or None without hidden states."""

    def scored(self) -> NDArray[np.bool_]:
        """[T], whether the next token belongs to the position's document."""
        return PackedTokens(self.token_ids, self.document_starts).scored()


class PackedTokens(NamedTuple):
    """A packed sequence of T positions, without what the teacher said."""

    token_ids: NDArray[np.int32]
    """[T + 1]"""
    document_starts: NDArray[np.int32]
    """See ``Row.document_starts``."""

    def scored(self) -> NDArray[np.bool_]:
        """[T], whether the next token belongs to the position's document."""
        mask = np.ones(len(self.token_ids) - 1, bool)
        mask[self.document_starts - 1] = False
        return mask


_FIELDS_OF_KINDS = ("counts", "draws")


def check_shapes(row: Row, spec: CacheSpec, fields_of_kind: tuple[str, ...]) -> None:
    """Raise ValueError unless ``row`` has the arrays that ``spec`` calls for, in their shapes.

    Of the fields that only some kinds of target have, ``fields_of_kind`` are expected.
    """
    num_positions = spec.sequence_length
    expected: dict[str, tuple[int, ...]] = {
        "token_ids": (num_positions + 1,),
        "num_kept": (num_positions,),
        "tail_log_mass": (num_positions, len(spec.targets.inverse_temperatures)),
        "next_logprob": (num_positions,),
    }
    for name, is_there, kind in (
        ("sketch", spec.sketch.kind != "none", spec.sketch.kind),
        *((name, name in fields_of_kind, spec.targets.kind) for name in _FIELDS_OF_KINDS),
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
    check_document_starts(row.document_starts, num_positions)


def check_document_starts(starts: NDArray[np.int32], num_positions: int) -> None:
    """Raise ValueError unless indices from 1 to T rise."""
    if starts.ndim != 1 or not np.issubdtype(starts.dtype, np.integer):
        raise ValueError("document_starts: expected one dimension of integers")
    bounded = np.concatenate([[0], starts.astype(np.int64), [num_positions + 1]])
    if not (np.diff(bounded) > 0).all():
        raise ValueError(
            f"document_starts: expected rising indices from 1 to {num_positions}, "
            f"found {starts.tolist()[:20]}"
        )


def check_num_kept(num_kept: NDArray[np.uint16], scored: NDArray[np.bool_]) -> None:
    """Raise ValueError unless scored positions keep at least one id and others none."""
    wrong = (num_kept > 0) != scored
    if wrong.any():
        position = int(np.argmax(wrong))
        expected = "at least 1 where scored" if scored[position] else "0 where not scored"
        raise ValueError(
            f"num_kept: position {position}: expected {expected}, found {num_kept[position]}"
        )


def refuse_repeated(
    ids: NDArray[np.int32], position: NDArray[np.int64], what_is_wrong: str
) -> None:
    """Raise ValueError if a position, that of each id being given, has an id twice."""
    keys = np.sort((position << 24) | ids)
    twice = keys[1:] == keys[:-1]
    if twice.any():
        key = int(keys[np.argmax(twice)])
        raise ValueError(f"position {key >> 24}: id {key & 0xFFFFFF} {what_is_wrong}")


def check_gaps(
    gaps: NDArray[np.float32], kept: NDArray[np.int64], position: NDArray[np.int64]
) -> None:
    """Raise ValueError unless gaps, [N], begin at 0 and do not fall within a position."""
    columns.require_all(np.isfinite(gaps) & (gaps >= 0), gaps, "a finite gap ≥ 0", position)
    starts = (np.cumsum(kept) - kept)[kept > 0]
    columns.require_all(gaps[starts] == 0, gaps[starts], "a first gap of 0", position[starts])
    falls = np.diff(gaps, prepend=np.float32(0)) < 0
    falls[starts] = False
    columns.require_all(~falls, gaps, "gaps that do not fall along the rank", position)


def check_tail(tail: NDArray[np.float32], scored: NDArray[np.bool_]) -> None:
    """Raise ValueError if a log-mass, [T, n], is no number where it is used."""
    worst = np.where(scored[:, None], tail, np.float32(0)).max(axis=1)  # NaN wherever there is one
    columns.require_all(worst < np.inf, worst, "log-masses, numbers or −inf")
