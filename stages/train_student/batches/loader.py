"""The loader: a cache's rows as batches, in the order that ``row_order`` gives.

In: an open cache and the order. Out: one ``Batch`` for each optimizer step, read ahead by threads.
Called by ``run``.

Shapes: R rows of a step (batch × accumulation), T positions, K kept ids, J drawn ids, M nodes 1/T,
D width, d sketch.
"""

import heapq
import math
from bisect import bisect_left
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, fields
from itertools import accumulate
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from cache_format.codec import Row
from cache_format.reader import Cache
from cache_format.sketch import sketch_signs
from cache_format.spec import Split, TargetSpec
from stages.train_student.batches.row_order import RowOrder
from stages.train_student.config import TrainStudentConfig

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
    """float32 [R, T, K], z_max − z_j in nats at T = 1; +inf marks a repetition. Of samples drawn at
    T: T·log(largest count / count), so that softmax(−gaps/T) = counts / draws"""
    tail_log_mass: Tensor
    """float32 [R, T, M]"""
    drawn_ids: Tensor | None
    """int64 [R, T, J], ids drawn from those that are not kept, where the cache has such"""
    draw_counts: Tensor | None
    """uint8 [R, T, J], how often each was drawn; 0 marks padding"""
    drawn_gaps: Tensor | None
    """float32 [R, T, J], z_max − z_j in nats at T = 1"""
    next_logprob: Tensor
    """float32 [R, T]"""
    sketch: Tensor | None
    """float32 [R, T, d]"""
    projection: Tensor | None
    """int8 [R, D, d], the signs of each row's shard; or float32 [1, D, d], one matrix for all"""

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
            rows = slice(start, start + num_rows)
            yield self._mapped(lambda x: x[rows] if len(x) == self.num_rows else x)  # noqa: B023

    def to(self, device: torch.device) -> "Batch":
        """The batch on ``device``."""
        return self._mapped(lambda tensor: tensor.to(device, non_blocking=True))

    def _mapped(self, function: Callable[[Tensor], Tensor]) -> "Batch":
        mapped: dict[str, Any] = {}
        for field in fields(self):
            value = getattr(self, field.name)
            mapped[field.name] = None if value is None else function(value)
        return Batch(**mapped)


def row_order(cache: Cache, config: TrainStudentConfig, num_rows: int) -> RowOrder:
    """The order of the first ``num_rows`` training rows, which are those of whole shards.

    Raises ValueError where the copies of a remote cache have no room for the shards that are mixed
    at a time: each of them would be fetched again for almost every row.
    """
    entries = cache.shards("train")
    ends = list(accumulate((entry.num_rows for entry in entries), initial=0))
    entries = entries[: bisect_left(ends, num_rows)]
    num_mixed = min(config.shuffle_shards or len(entries), len(entries))
    needed = sum(heapq.nlargest(num_mixed, (entry.num_bytes for entry in entries)))
    room = cache.max_local_bytes
    if room is not None and needed > room:
        raise ValueError(
            f"train_student.shuffle_shards: the rows of {num_mixed} of {len(entries)} shards are "
            f"mixed at a time. They take up to {needed:,} bytes, local copies of {cache.path} may "
            f"take {room:,}. Set shuffle_shards to about {max(1, num_mixed * room // needed):,}, "
            f"or give --local-gib {math.ceil(needed / 2**30 * 100) / 100:g} or more."
        )
    return RowOrder(
        seed=config.seed,
        rows_of_shards=tuple(entry.num_rows for entry in entries),
        shuffle_shards=config.shuffle_shards,
        rows_per_step=config.batch_size * config.accumulation,
    )


class Loader:
    """Reads steps ahead in threads; closing it, or leaving its ``with`` block, stops them."""

    def __init__(
        self,
        cache: Cache,
        order: RowOrder,
        *,
        num_threads: int,
        with_sketch: bool,
    ) -> None:
        self._cache = cache
        self._order = order
        self._with_sketch = with_sketch
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
        indices = self._order.rows_of_step(step)
        return read_batch(self._cache, "train", indices.tolist(), with_sketch=self._with_sketch)


def read_batch(cache: Cache, split: Split, indices: Sequence[int], *, with_sketch: bool) -> Batch:
    """The rows ``indices`` of ``split`` as one batch."""
    read = [cache.read_row(split, index, with_sketch=with_sketch) for index in indices]
    rows = [row for _, row in read]
    targets = cache.spec.targets
    kept_ids, gaps = zip(*(_dense(row, targets) for row in rows), strict=True)
    drawn: Sequence[Tensor | None] = (None, None, None)
    if targets.num_draws is not None:
        parts = zip(*(_dense_draws(row, targets.num_draws) for row in rows), strict=True)
        drawn = [torch.from_numpy(np.stack(part)) for part in parts]
    sketch = projection = None
    if with_sketch:
        sketch = torch.from_numpy(np.stack([row.sketch for row in rows]))  # type: ignore[misc]
        projection = _projection(cache, [unit for unit, _ in read])
    starts, labels = zip(*(_starts_and_labels(row) for row in rows), strict=True)
    return Batch(
        input_ids=torch.from_numpy(np.stack([row.token_ids[:-1] for row in rows]).astype(np.int64)),
        labels=torch.from_numpy(np.stack(labels)),
        is_document_start=torch.from_numpy(np.stack(starts)),
        kept_ids=torch.from_numpy(np.stack(kept_ids)),
        gaps=torch.from_numpy(np.stack(gaps)),
        tail_log_mass=torch.from_numpy(np.stack([row.tail_log_mass for row in rows])),
        next_logprob=torch.from_numpy(np.stack([row.next_logprob for row in rows])),
        drawn_ids=drawn[0],
        draw_counts=drawn[1],
        drawn_gaps=drawn[2],
        sketch=sketch,
        projection=projection,
    )


def _projection(cache: Cache, units: Sequence[int]) -> Tensor:
    """What the sketches of rows of ``units`` were projected with; see ``Batch.projection``."""
    spec = cache.spec
    if spec.sketch.kind == "pca":
        assert cache.projection is not None
        return torch.from_numpy(cache.projection[None].copy())
    shape = (spec.teacher.hidden_size, spec.sketch.dim)
    by_unit = {unit: sketch_signs(spec.seed, unit, *shape) for unit in units}
    return torch.from_numpy(np.stack([by_unit[unit] for unit in units]))


def _dense(row: Row, targets: TargetSpec) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]:
    """Ragged kept ids and gaps as [T, K]; what is missing repeats the first id at a gap of +inf."""
    # Logs of counts tell of z/T at the temperature of the draws; gaps are those of z.
    drawn_at = 1 / targets.inverse_temperatures[0] if targets.kind == "sampled" else 1.0
    num_kept = row.num_kept.astype(np.int64)
    is_kept = np.arange(targets.top_k) < num_kept[:, None]
    gaps = np.full(is_kept.shape, np.inf, np.float32)
    gaps[is_kept] = row.gaps * np.float32(drawn_at)
    kept_ids = np.zeros(is_kept.shape, np.int64)
    kept_ids[is_kept] = row.kept_ids
    return np.where(is_kept, kept_ids, kept_ids[:, :1]), gaps


def _dense_draws(
    row: Row, most: int
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.uint8], npt.NDArray[np.float32]]:
    """Ragged drawn ids, counts and gaps as [T, most]; what is missing is id 0, drawn 0 times."""
    assert row.draws is not None
    is_drawn = np.arange(most) < row.draws.num_ids.astype(np.int64)[:, None]
    ids = np.zeros(is_drawn.shape, np.int64)
    counts = np.zeros(is_drawn.shape, np.uint8)
    gaps = np.zeros(is_drawn.shape, np.float32)
    ids[is_drawn] = row.draws.ids
    counts[is_drawn] = row.draws.counts
    gaps[is_drawn] = row.draws.gaps
    return ids, counts, gaps


def _starts_and_labels(row: Row) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.int64]]:
    num_positions = len(row.token_ids) - 1
    is_start = np.zeros(num_positions + 1, np.bool_)
    is_start[row.document_starts] = True
    is_start[0] = True
    labels = row.token_ids[1:].astype(np.int64)
    labels[is_start[1:]] = _UNLABELLED
    return is_start[:-1], labels
