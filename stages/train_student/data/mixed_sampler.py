"""The order in which rows of several caches are drawn: a pure function of seed, step and caches.

In: the order of each cache's rows, and weights. Out: the rows of every optimizer step, as one cache
has them (``sampler``): whole micro-batches, the same however many processes there are.

Rows are divided among the caches by weight, row by row and from one step to the next (see
``interleaving``). Each cache is read in passes of its own: every row once, in another order in each
pass, and the next pass begins where the last one ends, wherever that is in a step or an epoch. An
epoch of the run is as many rows as all caches have together, rounded down to whole steps: a cache
whose weight is more than its share of the rows is read more than once in it, another one in part.

S caches, A micro-batches of a step, B rows of a micro-batch.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np
import numpy.typing as npt

from cache_format.metadata.interleaving import Interleaving, interleaving
from stages.train_student.data.sampler import (
    WHOLE,
    RankSlice,
    Sampler,
    epoch_order,
    steps_per_epoch,
)


@dataclass(frozen=True, kw_only=True)
class MixedSampler:
    """A ``RowOrder`` whose indices name a cache and a row of it, see ``located``."""

    samplers: tuple[Sampler, ...]
    """Those of the caches: their seed, shards and shuffling. All have the same size of a step."""
    weights: tuple[float, ...]

    def __post_init__(self) -> None:
        # Here rather than in the threads that read; refuses weights that it cannot keep to.
        self._sources.at(np.arange(1))
        _ = self._order

    @property
    def batch_size(self) -> int:
        """Rows of a micro-batch: one forward pass."""
        return self.samplers[0].batch_size

    @property
    def rows_per_step(self) -> int:
        """Rows of a step, those of all processes and caches."""
        return self.samplers[0].rows_per_step

    @property
    def steps_per_epoch(self) -> int:
        """Whole steps in as many rows as all caches have together."""
        num_rows = sum(sum(sampler.rows_of_shards) for sampler in self.samplers)
        return steps_per_epoch(self.rows_per_step, num_rows)

    def rows_of_step(self, step: int, part: RankSlice = WHOLE) -> npt.NDArray[np.int64]:
        """Indices of ``part`` of a step. In a micro-batch, the rows of one cache are together."""
        first = step * self.rows_per_step
        source_n, before_n = self._sources.at(np.arange(first, first + self.rows_per_step))
        rows_n = np.empty_like(before_n)
        for source in range(len(self.samplers)):
            is_own_n = source_n == source
            rows_n[is_own_n] = self._rows(source, before_n[is_own_n])
        source_AB, rows_AB = (found.reshape(-1, self.batch_size) for found in (source_n, rows_n))
        places_AB = np.argsort(source_AB, axis=1, kind="stable")
        index_AB = np.take_along_axis(rows_AB * len(self.samplers) + source_AB, places_AB, axis=1)
        num_micro_batches = self.samplers[0].gradient_accumulation_steps
        return index_AB[part.micro_batches(num_micro_batches)].ravel()

    @cached_property
    def _sources(self) -> Interleaving:
        return interleaving(self.weights)

    @cached_property
    def _order(self) -> Callable[[int, int], npt.NDArray[np.int64]]:
        """The rows of a pass over a cache, by the cache's number and the pass's."""

        def order(source: int, number: int) -> npt.NDArray[np.int64]:
            sampler = self.samplers[source]
            shards, window = sampler.rows_of_shards, sampler.shuffle_shards
            return epoch_order(sampler.seed, number, shards, window)

        # Steps are read ahead, so that a cache may be in two passes at once.
        return lru_cache(maxsize=2 * len(self.samplers))(order)

    def _rows(self, source: int, drawn_n: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Rows of a cache at places that are counted over all of its passes."""
        passes_n, places_n = np.divmod(drawn_n, sum(self.samplers[source].rows_of_shards))
        rows_n = np.empty_like(places_n)
        for number in np.unique(passes_n):
            is_in_pass_n = passes_n == number
            rows_n[is_in_pass_n] = self._order(source, int(number))[places_n[is_in_pass_n]]
        return rows_n


def located(indices: Sequence[int], num_caches: int) -> list[tuple[int, int]]:
    """The number of the cache and the row of it that each index of a ``MixedSampler`` stands for.

    Index = row · caches + cache, so that it depends on no number of rows, which may grow.
    """
    return [(index % num_caches, index // num_caches) for index in indices]
