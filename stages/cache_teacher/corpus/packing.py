"""Documents become rows: the token ids of a unit in one stream, cut every T tokens.

Rows overlap by one token. A row of T positions has T + 1 ids, because position t is labeled with
id t + 1: the last id of a row, which is only a label there, is the first input of the next row. So
every id of the stream but the first is a label once. R rows, T positions.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

IntArray = npt.NDArray[np.int32]


@dataclass(frozen=True, kw_only=True)
class PackedUnit:
    """The rows of one unit. Row r holds the stream's ids rT to rT + T; neighbours share one id."""

    token_ids_RT: IntArray
    """int32 [R, T + 1]: position t of a row reads id t and is labeled with id t + 1."""
    document_starts: list[IntArray]
    """Per row, the ascending indices in 1..T at which a document begins; 0 always starts afresh."""
    num_dropped_tokens: int
    """Tokens dropped at the unit's end, where the last row is incomplete."""

    def rows(self, first: int, last: int) -> "PackedUnit":
        """Rows ``first`` to ``last``, without the remainder."""
        return PackedUnit(
            token_ids_RT=self.token_ids_RT[first:last],
            document_starts=self.document_starts[first:last],
            num_dropped_tokens=0,
        )

    def scored_RT(self) -> npt.NDArray[np.bool_]:
        """bool [R, T]: positions whose label belongs to the same document as their input."""
        scored_RT = np.ones((self.token_ids_RT.shape[0], self.token_ids_RT.shape[1] - 1), np.bool_)
        for row, starts in enumerate(self.document_starts):
            scored_RT[row, starts - 1] = False
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
