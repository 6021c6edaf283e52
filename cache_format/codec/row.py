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
class KeptIds:
    """The ids that are kept of T positions, N of all together; n is the number of nodes.

    At positions that are not scored ``num_ids`` is 0 and the other numbers are unspecified on the
    way in, 0 on the way out.
    """

    num_ids: NDArray[np.uint16]
    """[T], how many ids are kept at each position; the other arrays hold those of all positions one
    after another."""
    ids: NDArray[np.int32]
    """[N], for each position in order of falling logit; on the way out, those of one level in order
    of falling frequency."""
    gaps: NDArray[np.float32]
    """[N], the largest logit minus this one, nats at T = 1; the first of a position is 0."""
    counts: NDArray[np.uint16] | None = None
    """[N], how often each id was drawn where all are; ``gaps`` are then log(largest count / count)
    and the tail is empty, so that softmax(−gaps) = counts / draws, which estimates the teacher's
    distribution at the temperature of the draws without bias."""
    draws: TailSamples | None = None
    """Ids drawn from the tail, where targets are the largest logits and samples of the rest."""
    tail_log_mass: NDArray[np.float32]
    """[T, n], log Σ exp((z_j − z_max)·s) over the ids not kept; −inf where none is left out."""
    next_logprob: NDArray[np.float32]
    """[T], the teacher's log-probability of the next token at T = 1."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Row:
    """One packed sequence of T positions and what the teacher said at each."""

    token_ids: NDArray[np.int32]
    """[T + 1]; position t reads ``token_ids[t]``, and its label is ``token_ids[t + 1]``."""
    document_starts: NDArray[np.int32]
    """Rising indices from 1 to T into token_ids at which a document begins; 0 always does."""
    is_context: NDArray[np.bool_] | None = None
    """[T], positions whose next token is given but not to be learned; None where there are none."""
    kept_ids: KeptIds | None = None
    """What is kept of the distributions, of kinds of target that keep ids."""
    coefficients: NDArray[np.int16] | None = None
    """[T, J], of the teacher's last hidden states, which ``cache.transform.states`` makes of them;
    at positions that are not scored unspecified on the way in, 0 on the way out. Of kinds that keep
    states."""
    moment_coefficients: NDArray[np.int16] | None = None
    """[T, J], of the tail's moments, for ``cache.moment``; at positions that are not scored as
    ``coefficients``. Of targets that have moments."""
    sketch: NDArray[np.float32] | None = None
    """[T, L, d], L projected hidden states of each position; None without hidden states."""

    @property
    def kept(self) -> KeptIds:
        """``kept_ids``, of a kind that has them."""
        assert self.kept_ids is not None, "the kind of target keeps none"
        return self.kept_ids

    @property
    def tokens(self) -> "PackedTokens":
        """The row without what the teacher said."""
        return PackedTokens(self.token_ids, self.document_starts, self.is_context)

    def scored(self) -> NDArray[np.bool_]:
        """[T], whether the position has targets: its next token belongs to the same document and is
        to be learned."""
        return self.tokens.scored()


class PackedTokens(NamedTuple):
    """A packed sequence of T positions, without what the teacher said."""

    token_ids: NDArray[np.int32]
    """[T + 1]"""
    document_starts: NDArray[np.int32]
    """See ``Row.document_starts``."""
    is_context: NDArray[np.bool_] | None = None
    """See ``Row.is_context``."""

    def scored(self) -> NDArray[np.bool_]:
        """[T], whether the next token belongs to the position's document and is to be learned."""
        mask = np.ones(len(self.token_ids) - 1, bool)
        mask[self.document_starts - 1] = False
        if self.is_context is not None:
            mask &= ~self.is_context
        return mask


def check_shapes(row: Row, spec: CacheSpec) -> None:
    """Raise ValueError unless a row has what ``spec`` calls for, and what is not of targets has its
    shape."""
    num_positions = spec.sequence_length
    require_shape("token_ids", row.token_ids, (num_positions + 1,))
    if row.is_context is not None:
        require_shape("is_context", row.is_context, (num_positions,))
        if row.is_context.dtype != np.bool_:
            raise ValueError(f"is_context: expected booleans, found {row.is_context.dtype}")
    kind, targets = spec.targets.kind, spec.targets
    keeps_ids = targets.kept is not None or targets.draws is not None
    require_presence("kept_ids", row.kept_ids, keeps_ids, kind)
    require_presence("coefficients", row.coefficients, targets.hidden is not None, kind)
    has_moment = targets.moment is not None
    require_presence("moment_coefficients", row.moment_coefficients, has_moment, kind)
    require_presence("sketch", row.sketch, spec.sketch.kind != "none", spec.sketch.kind)
    if row.sketch is not None:
        shape = (num_positions, spec.sketch.num_states, spec.sketch.dim)
        require_shape("sketch", row.sketch, shape)
    check_document_starts(row.document_starts, num_positions)


def check_kept_shapes(kept: KeptIds, spec: CacheSpec, *, has_counts: bool, has_draws: bool) -> None:
    """Raise ValueError unless kept ids have the arrays that ``spec`` calls for, in their shapes."""
    kind, num_positions = spec.targets.kind, spec.sequence_length
    require_presence("counts", kept.counts, has_counts, kind)
    require_presence("draws", kept.draws, has_draws, kind)
    require_shape("num_ids", kept.num_ids, (num_positions,))
    num_nodes = 1 if spec.targets.kept is None else len(spec.targets.kept.inverse_temperatures)
    require_shape("tail_log_mass", kept.tail_log_mass, (num_positions, num_nodes))
    require_shape("next_logprob", kept.next_logprob, (num_positions,))
    num_entries = int(kept.num_ids.sum(dtype=np.int64))
    require_shape("ids", kept.ids, (num_entries,))
    require_shape("gaps", kept.gaps, (num_entries,))
    if kept.counts is not None:
        require_shape("counts", kept.counts, (num_entries,))


def require_shape(name: str, found: NDArray[np.generic], expected: tuple[int, ...]) -> None:
    """Raise ValueError unless an array has this shape."""
    if found.shape != expected:
        raise ValueError(f"{name}: expected shape {expected}, found {found.shape}")


def require_presence(name: str, value: object, is_due: bool, kind: str) -> None:
    """Raise ValueError unless what the spec's ``kind`` calls for is there, and nothing else."""
    if (value is not None) != is_due:
        found = "none" if value is None else "one"
        raise ValueError(f"{name}: the spec says {kind!r}, but the row has {found}")


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
