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
from cache_format.spec import CacheSpec

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
    """[N], for each position in order of falling logit, the lowest id first on a tie."""
    gaps: NDArray[np.float32]
    """[N], the largest logit minus this one, nats at T = 1; the first of a position is 0."""
    tail_log_mass: NDArray[np.float32]
    """[T, n], log Σ exp((z_j − z_max)·s) over the ids not kept; −inf where none is left out."""
    next_logprob: NDArray[np.float32]
    """[T], the teacher's log-probability of the next token at T = 1."""
    sketch: NDArray[np.float32] | None
    """[T, d], or None without hidden states."""

    def scored(self) -> NDArray[np.bool_]:
        """[T], whether the next token belongs to the position's document."""
        mask = np.ones(len(self.token_ids) - 1, bool)
        mask[self.document_starts - 1] = False
        return mask


def encode_row(row: Row, spec: CacheSpec) -> Encoded:
    """The columns of ``row``; raises ValueError naming column and position if it breaks a rule."""
    _check_shapes(row, spec)
    scored = row.scored()
    vocab_size, targets = spec.teacher.vocab_size, spec.targets
    _check_kept(row, scored)
    kept = row.num_kept
    tail = np.where(scored[:, None], row.tail_log_mass, np.float32(0))
    next_logprob = np.where(scored, row.next_logprob, np.float32(0))
    encoded: dict[str, bytes | NDArray[np.int32]] = {
        "token_ids": _named("token_ids", lambda: columns.encode_ids(row.token_ids, vocab_size)),
        "document_starts": row.document_starts.astype(np.int32),
        "num_kept": _named("num_kept", lambda: columns.encode_num_kept(kept, targets.top_k)),
        "kept_ids": _named("kept_ids", lambda: _encode_kept_ids(row, vocab_size)),
        "gaps": _named("gaps", lambda: columns.encode_gaps(row.gaps, kept, targets.logit_step)),
        "tail_log_mass": _named(
            "tail_log_mass", lambda: columns.encode_tail(tail, targets.tail_step)
        ),
        "next_logprob": _named("next_logprob", lambda: columns.encode_next_logprob(next_logprob)),
    }
    if row.sketch is not None:
        sketch = np.where(scored[:, None], row.sketch, np.float32(0))
        levels, scale = _named("sketch", lambda: columns.encode_sketch(sketch))
        encoded |= {"sketch": levels, "sketch_scale": scale}
    return encoded


def decode_row(
    encoded: Mapping[str, bytes | memoryview],
    document_starts: NDArray[np.int32],
    spec: CacheSpec,
) -> Row:
    """The row whose columns are ``encoded``; ``sketch`` is None unless its columns are there.

    Raises ValueError naming the column if the lengths do not fit the spec.
    """
    num_positions, targets = spec.sequence_length, spec.targets
    num_kept = _named(
        "num_kept", lambda: columns.decode_num_kept(encoded["num_kept"], num_positions)
    )
    num_entries = int(num_kept.sum(dtype=np.int64))
    sketch: NDArray[np.float32] | None = None
    if "sketch" in encoded:
        shape = (num_positions, spec.sketch.dim)
        sketch = columns.decode_sketch(encoded["sketch"], encoded["sketch_scale"], shape)
    return Row(
        token_ids=_named(
            "token_ids", lambda: columns.decode_ids(encoded["token_ids"], num_positions + 1)
        ),
        document_starts=document_starts,
        num_kept=num_kept,
        kept_ids=_named("kept_ids", lambda: columns.decode_ids(encoded["kept_ids"], num_entries)),
        gaps=_named(
            "gaps", lambda: columns.decode_gaps(encoded["gaps"], num_kept, targets.logit_step)
        ),
        tail_log_mass=_named(
            "tail_log_mass",
            lambda: columns.decode_tail(
                encoded["tail_log_mass"],
                num_positions,
                len(targets.inverse_temperatures),
                targets.tail_step,
            ),
        ),
        next_logprob=_named(
            "next_logprob",
            lambda: columns.decode_next_logprob(encoded["next_logprob"], num_positions),
        ),
        sketch=sketch,
    )


def _check_shapes(row: Row, spec: CacheSpec) -> None:
    num_positions = spec.sequence_length
    expected: dict[str, tuple[int, ...]] = {
        "token_ids": (num_positions + 1,),
        "num_kept": (num_positions,),
        "tail_log_mass": (num_positions, len(spec.targets.inverse_temperatures)),
        "next_logprob": (num_positions,),
    }
    if (row.sketch is None) != (spec.sketch.kind == "none"):
        raise ValueError(
            f"sketch: the spec says {spec.sketch.kind!r}, but the row has "
            f"{'none' if row.sketch is None else 'one'}"
        )
    if row.sketch is not None:
        expected["sketch"] = (num_positions, spec.sketch.dim)
    num_entries = int(row.num_kept.sum(dtype=np.int64))
    expected |= {"kept_ids": (num_entries,), "gaps": (num_entries,)}
    for name, shape in expected.items():
        found = getattr(row, name).shape
        if found != shape:
            raise ValueError(f"{name}: expected shape {shape}, found {found}")
    starts = row.document_starts
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


def _encode_kept_ids(row: Row, vocab_size: int) -> bytes:
    position = np.repeat(np.arange(len(row.num_kept), dtype=np.int64), row.num_kept)
    encoded = columns.encode_ids(row.kept_ids, vocab_size, position)
    keys = np.sort((position << 24) | row.kept_ids)
    twice = keys[1:] == keys[:-1]
    if twice.any():
        key = int(keys[np.argmax(twice)])
        raise ValueError(f"position {key >> 24}: id {key & 0xFFFFFF} is kept twice")
    return encoded


def _named(column: str, action: Callable[[], _T]) -> _T:
    try:
        return action()
    except ValueError as error:
        raise ValueError(f"{column}: {error}") from error
