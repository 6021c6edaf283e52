"""The loader: prefetches the batches of a run, in the order of ``row_order``.

In: an open cache, or a mixture of several, the order, and which part of it this process trains on.
Out: the micro-batches of each optimizer step, on the device.

Threads read and decode; on a GPU the copy of the next step goes on while this one is at work.
"""

import hashlib
import heapq
import math
from bisect import bisect_left
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from itertools import accumulate

import torch

from cache_format.errors import AdvisedError, NextStep
from cache_format.reader import Cache
from stages.next_steps import StageAction
from stages.train_student.config import TrainStudentConfig
from stages.train_student.data.batch import Batch, read_mixed_batch
from stages.train_student.data.mixed_sampler import MixedSampler
from stages.train_student.data.mixture import CacheMixture, mixture_of
from stages.train_student.data.sampler import WHOLE, RankSlice, RowOrder, Sampler

Step = tuple[Batch, ...]
"""The micro-batches of one optimizer step that one process trains on, in order."""

_STEPS_AHEAD = 3


def row_order(cache: Cache, config: TrainStudentConfig, num_rows: int) -> Sampler:
    """The order of the first ``num_rows`` training rows, which are those of whole shards.

    Raises ValueError if the local copies of a remote cache have less room than the shards that are
    shuffled together need: almost every row would then need a download.
    """
    entries = cache.shards("train")
    rows_of_shards = [len(cache.rows_of("train", entry)) for entry in entries]
    num_shards = bisect_left(list(accumulate(rows_of_shards, initial=0)), num_rows)
    entries, rows_of_shards = entries[:num_shards], rows_of_shards[:num_shards]
    num_mixed = min(config.shuffle_shards or len(entries), len(entries))
    needed = sum(heapq.nlargest(num_mixed, (entry.num_bytes for entry in entries)))
    room = cache.max_local_bytes
    if room is not None and needed > room:
        raise AdvisedError(
            f"train_student.shuffle_shards: the rows of {num_mixed} of {len(entries)} shards are "
            f"shuffled at a time. They take up to {needed:,} bytes, but local copies of "
            f"{cache.path} may take only {room:,}.",
            NextStep(
                f"Set shuffle_shards to about {max(1, num_mixed * room // needed):,}, or raise the "
                f"limit to {math.ceil(needed / 2**30 * 100) / 100:g} GiB or more.",
                StageAction.LOCAL_SPACE,
            ),
        )
    return Sampler(
        seed=config.seed,
        rows_of_shards=tuple(rows_of_shards),
        shuffle_shards=config.shuffle_shards,
        batch_size=config.batch_size,
        gradient_accumulation_steps=config.gradient_accumulation_steps,
    )


def mixed_order(
    mixture: CacheMixture, config: TrainStudentConfig, num_rows: Sequence[int]
) -> RowOrder:
    """The order of the first ``num_rows`` training rows of each cache; raises as ``row_order``.

    One cache alone is in the order of ``row_order``. Of several, each is shuffled by a seed of its
    own: caches of the same sizes are not read in step.
    """
    if not mixture.is_mixed:
        return row_order(mixture.caches[0], config, num_rows[0])
    samplers = []
    for cache, rows in zip(mixture.caches, num_rows, strict=True):
        name = f"{config.seed} {cache.cache_id}".encode()
        seed = int.from_bytes(hashlib.sha256(name).digest()[:8], "little")
        samplers.append(replace(row_order(cache, config, rows), seed=seed))
    return MixedSampler(samplers=tuple(samplers), weights=mixture.weights or tuple(num_rows))


class Loader:
    """Reads steps ahead in threads; closing it, or leaving its ``with`` block, stops them."""

    def __init__(
        self,
        cache: Cache | CacheMixture,
        order: RowOrder,
        device: torch.device,
        part: RankSlice = WHOLE,
        *,
        num_threads: int,
        with_sketch: bool,
    ) -> None:
        """``part`` is what this process trains on; ``device`` where its batches are wanted."""
        self._mixture, self._order = mixture_of(cache), order
        self._device, self._part = device, part
        self._with_sketch = with_sketch
        self._pool = ThreadPoolExecutor(num_threads, thread_name_prefix="cache-reader")

    def __enter__(self) -> "Loader":
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown(wait=True, cancel_futures=True)

    def steps(self, first: int, stop: int) -> Iterator[Step]:
        """The micro-batches of steps ``first`` to ``stop``. A reader's failure is raised here."""
        return copied_ahead(self._read_ahead(first, stop), self._device)

    def _read_ahead(self, first: int, stop: int) -> Iterator[Step]:
        waiting: deque[Future[Step]] = deque()
        for step in range(first, stop):
            waiting.append(self._pool.submit(self._read_step, step))
            if len(waiting) > _STEPS_AHEAD:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()

    def _read_step(self, step: int) -> Step:
        """This process's micro-batches of a step."""
        rows_AB = self._order.rows_of_step(step, self._part).reshape(-1, self._order.batch_size)
        read = (
            read_mixed_batch(self._mixture, rows_B.tolist(), with_sketch=self._with_sketch)
            for rows_B in rows_AB
        )
        return tuple(batch.pinned() if self._device.type == "cuda" else batch for batch in read)


def copied_ahead(steps: Iterable[Step], device: torch.device) -> Iterator[Step]:
    """``steps`` on ``device``, in order. A GPU copies each while the one before is in use."""
    if device.type != "cuda":
        yield from (_copied(step, device) for step in steps)
        return
    copying = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
    ready: tuple[Step, torch.cuda.Event] | None = None
    for step in steps:
        with torch.cuda.stream(copying):
            following = (_copied(step, device), copying.record_event())
        if ready is not None:
            yield _in_use(*ready, device)
        ready = following
    if ready is not None:
        yield _in_use(*ready, device)


def _copied(step: Step, device: torch.device) -> Step:
    return tuple(batch.to(device) for batch in step)


def _in_use(step: Step, copied: torch.cuda.Event, device: torch.device) -> Step:
    """``step``, whose memory is not given away while the device's stream has work for it."""
    stream = torch.cuda.current_stream(device)
    stream.wait_event(copied)
    for batch in step:
        batch.record_stream(stream)
    return step
