"""Documents become rows: the token ids of a unit in one stream, cut every T tokens.

Conversations become rows otherwise: each is whole in one row, and what they leave of a row is
filled.

Rows of a stream overlap by one token. A row of T positions has T + 1 ids, because position t is
labeled with id t + 1: the last id of a row, which is only a label there, is the first input of the
next row. So every id of the stream but the first is a label once. R rows, T positions.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

IntArray = npt.NDArray[np.int32]
Bools = npt.NDArray[np.bool_]


@dataclass(frozen=True, kw_only=True)
class PackedUnit:
    """Rows of one unit. Row r of a stream holds its ids rT to rT + T; neighbours share one id."""

    token_ids_RT: IntArray
    """int32 [R, T + 1]: position t of a row reads id t and is labeled with id t + 1."""
    document_starts: list[IntArray]
    """Per row, the ascending indices in 1..T at which a document begins; 0 always starts afresh."""
    num_dropped_tokens: int
    """Tokens dropped at the unit's end, where the last row is incomplete."""
    is_context_RT: Bools | None = None
    """bool [R, T]: positions whose label is given, but not to be learned; None if there are none"""

    def rows(self, first: int, last: int) -> "PackedUnit":
        """Rows ``first`` to ``last``, without the remainder."""
        return PackedUnit(
            token_ids_RT=self.token_ids_RT[first:last],
            document_starts=self.document_starts[first:last],
            num_dropped_tokens=0,
            is_context_RT=None if self.is_context_RT is None else self.is_context_RT[first:last],
        )

    def context_of(self, row: int) -> Bools | None:
        """bool [T]: the positions of a row that are context."""
        return None if self.is_context_RT is None else self.is_context_RT[row]

    def scored_RT(self) -> Bools:
        """bool [R, T]: positions whose label belongs to the same document as their input, and is to
        be learned."""
        scored_RT = np.ones((self.token_ids_RT.shape[0], self.token_ids_RT.shape[1] - 1), np.bool_)
        for row, starts in enumerate(self.document_starts):
            scored_RT[row, starts - 1] = False
        if self.is_context_RT is not None:
            scored_RT &= ~self.is_context_RT
        return scored_RT


def pack(documents: Sequence[IntArray], eos_token_id: int, sequence_length: int) -> PackedUnit:
    """End each document with the end-of-text id, join them, and cut rows; an incomplete last row is
    dropped.

    A document longer than a row goes on in the next one, where the teacher starts it afresh.
    """
    end = np.array([eos_token_id], dtype=np.int32)
    pieces = [piece for document in documents for piece in (document, end)]
    stream = np.concatenate(pieces) if pieces else np.empty(0, dtype=np.int32)
    starts = np.cumsum([0] + [len(document) + 1 for document in documents])[:-1]
    num_rows = max(len(stream) - 1, 0) // sequence_length
    row_begins = np.arange(num_rows) * sequence_length
    first = np.searchsorted(starts, row_begins, side="right")
    last = np.searchsorted(starts, row_begins + sequence_length, side="right")
    return PackedUnit(
        token_ids_RT=stream[row_begins[:, None] + np.arange(sequence_length + 1)],
        document_starts=[
            (starts[low:high] - begin).astype(np.int32)
            for low, high, begin in zip(first, last, row_begins, strict=True)
        ],
        num_dropped_tokens=len(stream) - (num_rows * sequence_length + 1 if num_rows else 0),
    )


def taking_turns(units: Sequence[PackedUnit], weights: Sequence[float]) -> PackedUnit:
    """All rows of ``units``, of which any number from the first one on has shares by ``weights``,
    as long as none of the units is used up."""
    if len(units) == 1:
        return units[0]
    due_R = np.concatenate(
        [
            (np.arange(len(unit.token_ids_RT)) + 0.5) / weight
            for unit, weight in zip(units, weights, strict=True)
        ]
    )
    order_R = np.argsort(due_R, kind="stable")
    document_starts = [starts for unit in units for starts in unit.document_starts]
    contexts_RT = [
        np.zeros(unit.token_ids_RT[:, 1:].shape, np.bool_)
        if unit.is_context_RT is None
        else unit.is_context_RT
        for unit in units
    ]
    has_context = any(unit.is_context_RT is not None for unit in units)
    return PackedUnit(
        token_ids_RT=np.concatenate([unit.token_ids_RT for unit in units])[order_R],
        document_starts=[document_starts[row] for row in order_R],
        num_dropped_tokens=sum(unit.num_dropped_tokens for unit in units),
        is_context_RT=np.concatenate(contexts_RT)[order_R] if has_context else None,
    )


def pack_whole(
    documents: Sequence[tuple[IntArray, Bools]], fill_token_id: int, sequence_length: int
) -> PackedUnit:
    """Put each document, its ids and which of these are scored, whole into the first row that has
    room for it.

    Nothing is added to a document: a conversation ends as its template ends it. What is left of a
    row is a document of ``fill_token_id`` alone, and context. No document may be longer than the
    T + 1 ids of a row.
    """
    num_ids = sequence_length + 1
    rows: list[list[int]] = []
    room: list[int] = []
    for number, (ids, _) in enumerate(documents):
        assert len(ids) <= num_ids, "longer documents are split or left out"
        row = next((row for row, left in enumerate(room) if left >= len(ids)), len(rows))
        if row == len(rows):
            rows.append([])
            room.append(num_ids)
        rows[row].append(number)
        room[row] -= len(ids)
    token_ids = np.full((len(rows), num_ids), fill_token_id, np.int32)
    is_scored = np.zeros((len(rows), num_ids), np.bool_)
    document_starts = []
    for row, numbers in enumerate(rows):
        ends = np.cumsum([len(documents[number][0]) for number in numbers])
        token_ids[row, : ends[-1]] = np.concatenate([documents[number][0] for number in numbers])
        is_scored[row, : ends[-1]] = np.concatenate([documents[number][1] for number in numbers])
        document_starts.append(ends[ends < num_ids].astype(np.int32))
    return PackedUnit(
        token_ids_RT=token_ids,
        document_starts=document_starts,
        num_dropped_tokens=0,
        is_context_RT=~is_scored[:, 1:],
    )
