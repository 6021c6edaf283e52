"""The loader: a cache's rows as batches, in an order that is a pure function.

In: an open cache, (seed, step). Out: one ``Batch`` for each optimizer step, read ahead by threads.
Called by ``run``. The order depends on the seed, the epoch and the step and on nothing else, so a
resumed run needs no loader state beside its step.

Shapes: R rows of a step (batch × accumulation), T positions, K kept ids, M nodes 1/T, d sketch.
"""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, fields
from functools import lru_cache
from operator import itemgetter
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from cache_format.codec import Row
from cache_format.reader import Cache
from cache_format.sketch import sketch_signs
from cache_format.spec import Split

_STEPS_AHEAD = 3
_UNLABELLED = -100


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Rows as tensors. ``labels`` is −100 where the label belongs to another document."""

    input_ids: Tensor
    """int64 [R, T]"""
    labels: Tensor
    """int64 [R, T]"""
    is_document_start: Tensor
    """bool [R, T]"""
    kept_ids: Tensor
    """int64 [R, T, K]; a position with fewer than K repeats its first id"""
    gaps: Tensor
    """float32 [R, T, K]; +inf marks a repetition"""
    tail_log_mass: Tensor
    """float32 [R, T, M]"""
    next_logprob: Tensor
    """float32 [R, T]"""
    sketch: Tensor | None
    """float32 [R, T, d]"""
    signs: Tensor | None
    """int8 [R, D, d], the signs of each row's shard"""

    @property
    def num_rows(self) -> int:
        """R"""
        return len(self.input_ids)

    @property
    def num_scored(self) -> int:
        """Positions whose label belongs to their own document."""
        return int((self.labels != _UNLABELLED).sum())

    def split(self, num_rows: int) -> "Iterator[Batch]":
        """Micro-batches of ``num_rows`` rows, in order."""
        for start in range(0, self.num_rows, num_rows):
            yield self._mapped(itemgetter(slice(start, start + num_rows)))

    def to(self, device: torch.device) -> "Batch":
        """The batch on ``device``."""
        return self._mapped(lambda tensor: tensor.to(device, non_blocking=True))

    def _mapped(self, function: Callable[[Tensor], Tensor]) -> "Batch":
        mapped: dict[str, Any] = {}
        for field in fields(self):
            value = getattr(self, field.name)
            mapped[field.name] = None if value is None else function(value)
        return Batch(**mapped)


@lru_cache(maxsize=4)
def epoch_order(seed: int, epoch: int, num_rows: int) -> npt.NDArray[np.int64]:
    """A permutation of ``num_rows`` rows: rows sorted by a hash of (seed, epoch, row).

    The hash is SplitMix64 (Steele, Lea and Flood, OOPSLA 2014), so the order is the same with every
    version of every library.
    """
    key = _splitmix64(_splitmix64(np.array([seed], np.uint64)) ^ np.uint64(epoch))
    keys = _splitmix64(np.arange(num_rows, dtype=np.uint64) ^ key)
    return np.argsort(keys, kind="stable")


def step_rows(seed: int, step: int, rows_per_step: int, num_rows: int) -> npt.NDArray[np.int64]:
    """Row indices of one optimizer step. Rows that fill no step of an epoch are left out of it."""
    epoch, step_in_epoch = divmod(step, steps_per_epoch(rows_per_step, num_rows))
    start = step_in_epoch * rows_per_step
    return epoch_order(seed, epoch, num_rows)[start : start + rows_per_step]


def steps_per_epoch(rows_per_step: int, num_rows: int) -> int:
    """Whole steps in one pass. Raises ValueError if there is none."""
    if num_rows == 0:
        raise ValueError(
            "the cache has no training rows: unit 0 is always validation, and there is no other. "
            "Cache more tokens, or make a cache with fewer cache_teacher.documents_per_unit."
        )
    if num_rows < rows_per_step:
        raise ValueError(
            f"the cache has {num_rows} training rows, fewer than one step's {rows_per_step} "
            "(batch_size × accumulation). Lower these, or cache more tokens."
        )
    return num_rows // rows_per_step


class Loader:
    """Reads steps ahead in threads; closing it, or leaving its ``with`` block, stops them."""

    def __init__(
        self,
        cache: Cache,
        *,
        num_rows: int,
        seed: int,
        rows_per_step: int,
        num_threads: int,
        with_sketch: bool,
    ) -> None:
        self._cache = cache
        self._seed = seed
        self._rows_per_step = rows_per_step
        self._with_sketch = with_sketch
        self._num_rows = num_rows
        self._pool = ThreadPoolExecutor(num_threads, thread_name_prefix="cache-reader")

    def __enter__(self) -> "Loader":
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown(wait=True, cancel_futures=True)

    def steps(self, first: int, stop: int) -> Iterator[Batch]:
        """The batches of steps ``first`` to ``stop``. A reader's failure is raised here."""
        waiting: deque[Future[Batch]] = deque()
        for step in range(first, stop):
            waiting.append(self._pool.submit(self._read_step, step))
            if len(waiting) > _STEPS_AHEAD:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()

    def _read_step(self, step: int) -> Batch:
        indices = step_rows(self._seed, step, self._rows_per_step, self._num_rows)
        return read_batch(self._cache, "train", indices.tolist(), with_sketch=self._with_sketch)


def read_batch(cache: Cache, split: Split, indices: Sequence[int], *, with_sketch: bool) -> Batch:
    """The rows ``indices`` of ``split`` as one batch."""
    read = [cache.read_row(split, index, with_sketch=with_sketch) for index in indices]
    rows = [row for _, row in read]
    kept_ids, gaps = zip(*(_dense(row, cache.spec.targets.top_k) for row in rows), strict=True)
    sketch = signs = None
    if with_sketch:
        spec = cache.spec
        sketch = torch.from_numpy(np.stack([row.sketch for row in rows]))  # type: ignore[misc]
        shape = (spec.teacher.hidden_size, spec.sketch.dim)
        by_unit = {unit: sketch_signs(spec.seed, unit, *shape) for unit, _ in read}
        signs = torch.from_numpy(np.stack([by_unit[unit] for unit, _ in read]))
    starts, labels = zip(*(_starts_and_labels(row) for row in rows), strict=True)
    return Batch(
        input_ids=torch.from_numpy(np.stack([row.token_ids[:-1] for row in rows]).astype(np.int64)),
        labels=torch.from_numpy(np.stack(labels)),
        is_document_start=torch.from_numpy(np.stack(starts)),
        kept_ids=torch.from_numpy(np.stack(kept_ids)),
        gaps=torch.from_numpy(np.stack(gaps)),
        tail_log_mass=torch.from_numpy(np.stack([row.tail_log_mass for row in rows])),
        next_logprob=torch.from_numpy(np.stack([row.next_logprob for row in rows])),
        sketch=sketch,
        signs=signs,
    )


def _dense(row: Row, top_k: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]:
    """Ragged kept ids and gaps as [T, K]; what is missing repeats the first id at a gap of +inf."""
    num_kept = row.num_kept.astype(np.int64)
    is_kept = np.arange(top_k) < num_kept[:, None]
    gaps = np.full(is_kept.shape, np.inf, np.float32)
    gaps[is_kept] = row.gaps
    kept_ids = np.zeros(is_kept.shape, np.int64)
    kept_ids[is_kept] = row.kept_ids
    return np.where(is_kept, kept_ids, kept_ids[:, :1]), gaps


def _starts_and_labels(row: Row) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.int64]]:
    num_positions = len(row.token_ids) - 1
    is_start = np.zeros(num_positions + 1, np.bool_)
    is_start[row.document_starts] = True
    is_start[0] = True
    labels = row.token_ids[1:].astype(np.int64)
    labels[is_start[1:]] = _UNLABELLED
    return is_start[:-1], labels


def _splitmix64(x: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    x = x + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
