"""The table of ids by frequency, through which a cache stores every id.

Ranks of ids that are often kept are small, so they take few bits. The table is a permutation of the
vocabulary that stage one takes from the corpus before the first unit; the spec holds its hash. Out:
ids by rank, ranks by id, and the bytes of the file ``ranks.bin``.
"""

import hashlib
from functools import cached_property

import numpy as np
from numpy.typing import NDArray


class RankTable:
    """A permutation of the ids 0 … V − 1, the most frequent first."""

    def __init__(self, ids_by_rank: NDArray[np.int32]) -> None:
        """``ids_by_rank``, [V]; raises ValueError unless it is a permutation."""
        if not np.array_equal(np.sort(ids_by_rank), np.arange(len(ids_by_rank))):
            raise ValueError("ranks: expected every id exactly once")
        self.ids_by_rank = ids_by_rank

    @classmethod
    def by_weight(cls, weights: NDArray[np.integer]) -> "RankTable":
        """Ids in order of falling weight, [V], the lowest id first where weights are equal."""
        return cls(np.argsort(-weights.astype(np.int64), kind="stable").astype(np.int32))

    @classmethod
    def from_bytes(cls, data: bytes, vocab_size: int) -> "RankTable":
        """The table in the bytes of ``ranks.bin``; raises ValueError if there is none in them."""
        if len(data) != 4 * vocab_size:
            raise ValueError(f"ranks: expected {4 * vocab_size} bytes, found {len(data)}")
        return cls(np.frombuffer(data, "<i4").astype(np.int32))

    def to_bytes(self) -> bytes:
        """Ids by rank as int32."""
        return self.ids_by_rank.astype("<i4").tobytes()

    @cached_property
    def ranks_by_id(self) -> NDArray[np.int32]:
        """The rank of each id, [V]."""
        ranks = np.empty_like(self.ids_by_rank)
        ranks[self.ids_by_rank] = np.arange(len(ranks), dtype=np.int32)
        return ranks

    @cached_property
    def sha256(self) -> str:
        """Hash of the bytes of ``ranks.bin``, in hex."""
        return hashlib.sha256(self.to_bytes()).hexdigest()
