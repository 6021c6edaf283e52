"""The order in which rows are drawn: a pure function of the seed, the epoch and the step.

In: a seed, and how many rows each shard has. Out: the rows of every optimizer step, in
micro-batches, and which of these each process takes. A resumed run needs no
state of the order beside its step, and the order is the same with every version of every library:
it sorts by SplitMix64 (Steele, Lea and Flood, OOPSLA 2014).
"""

from dataclasses import dataclass
from functools import lru_cache
from typing import Protocol

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True)
class RankSlice:
    """What process ``rank`` of ``num_ranks`` takes of every step: whole micro-batches, by turns.

    So a micro-batch, and all that is computed of it, is the same however many processes there are.
    """

    rank: int
    num_ranks: int

    def micro_batches(self, gradient_accumulation_steps: int) -> list[int]:
        """Numbers within the step, rising."""
        return list(range(self.rank, gradient_accumulation_steps, self.num_ranks))


WHOLE = RankSlice(0, 1)


class RowOrder(Protocol):
    """The order of a run's rows: a ``Sampler``, or of several caches a ``MixedSampler``."""

    @property
    def batch_size(self) -> int:
        """Rows of a micro-batch: one forward pass."""

    @property
    def rows_per_step(self) -> int:
        """Rows of a step, those of all processes."""

    @property
    def steps_per_epoch(self) -> int:
        """Steps in an epoch, whole ones."""

    def rows_of_step(self, step: int, part: RankSlice = WHOLE) -> npt.NDArray[np.int64]:
        """Row indices of ``part`` of a step."""


@dataclass(frozen=True, kw_only=True)
class Sampler:
    """Every epoch visits each row once, in another order."""

    seed: int
    rows_of_shards: tuple[int, ...]
    """Training rows of each shard, in the order of the cache."""
    shuffle_shards: int | None
    """Shards whose rows are mixed at a time; None: all of them."""
    batch_size: int
    """Rows of a micro-batch: one forward pass."""
    gradient_accumulation_steps: int
    """Micro-batches of a step."""

    @property
    def rows_per_step(self) -> int:
        """Rows of a step, those of all processes."""
        return self.batch_size * self.gradient_accumulation_steps

    @property
    def steps_per_epoch(self) -> int:
        """Whole steps in one pass."""
        return steps_per_epoch(self.rows_per_step, sum(self.rows_of_shards))

    def rows_of_step(self, step: int, part: RankSlice = WHOLE) -> npt.NDArray[np.int64]:
        """Row indices of ``part`` of a step. Rows that fill no step of an epoch are left out."""
        epoch, step_in_epoch = divmod(step, self.steps_per_epoch)
        start = step_in_epoch * self.rows_per_step
        order = _kept_order(self.seed, epoch, self.rows_of_shards, self.shuffle_shards)
        rows = order[start : start + self.rows_per_step].reshape(
            self.gradient_accumulation_steps, -1
        )
        return rows[part.micro_batches(self.gradient_accumulation_steps)].ravel()


def epoch_order(
    seed: int, epoch: int, rows_of_shards: tuple[int, ...], shuffle_shards: int | None = None
) -> npt.NDArray[np.int64]:
    """A permutation of all rows: by window, and in it by a hash of (seed, epoch, row).

    Windows are of ``shuffle_shards`` shards that follow one another in an order by hash, too.
    """
    num_shards, num_rows = len(rows_of_shards), sum(rows_of_shards)
    key = _splitmix64(_splitmix64(np.array([seed], np.uint64)) ^ np.uint64(epoch))
    row_keys = _splitmix64(np.arange(num_rows, dtype=np.uint64) ^ key)
    shard_keys = _splitmix64(np.arange(num_shards, dtype=np.uint64) ^ _splitmix64(key))
    places = np.empty(num_shards, np.int64)
    places[np.argsort(shard_keys, kind="stable")] = np.arange(num_shards)
    windows = np.repeat(places // (shuffle_shards or max(num_shards, 1)), rows_of_shards)
    return np.lexsort((row_keys, windows))


_kept_order = lru_cache(maxsize=4)(epoch_order)  # every step of an epoch asks


def steps_per_epoch(rows_per_step: int, num_rows: int) -> int:
    """Whole steps in one pass. Raises ValueError if there is none."""
    if num_rows == 0:
        raise ValueError(
            "the cache has no training rows, only validation rows. Cache more tokens, "
            'or make another cache with cache_teacher.validation_split = "rows" or fewer '
            "cache_teacher.documents_per_unit."
        )
    if num_rows < rows_per_step:
        raise ValueError(
            f"the cache has {num_rows} training rows, fewer than one step's {rows_per_step} "
            "(batch_size × gradient_accumulation_steps). Lower these, or cache more tokens."
        )
    return num_rows // rows_per_step


def micro_batch_seed(seed: int, step: int, micro_batch: int) -> int:
    """Seed of a micro-batch's dropout, below 2^64: whoever trains on it draws the same."""
    key = np.array([seed], np.uint64)
    for number in (step, micro_batch):
        key = _splitmix64(key) ^ np.uint64(number)
    return int(_splitmix64(key)[0])


def _splitmix64(x: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    x = x + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
