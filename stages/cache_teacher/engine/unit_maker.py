"""Make a unit: its documents → rows → teacher → targets → a published shard.

In: the number of a unit. Out: its entry in the cache. What is made is a
function of the spec and the number alone, so it does not matter who makes it, how often, or when
it was killed.

Several threads make a unit each, so that one reads while another's is on the device and a third's
is encoded and written. One at a time reads, one at a time launches, and at most ``_LAUNCHED``
forward passes are on the device and not yet copied from it: memory does not grow if the disk is
slow, and the device has work while one thread waits for another.
"""

import threading
from collections import deque
from collections.abc import Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass

import torch

from cache_format.codec.row_codec import Row
from cache_format.metadata.receipt import ShardEntry
from cache_format.metadata.spec import CacheSpec
from cache_format.tables.shared_files import SharedFiles
from cache_format.threads import default_num_threads
from cache_format.writer import CacheWriter
from stages.cache_teacher.config import CacheTeacherConfig
from stages.cache_teacher.corpus.packing import PackedUnit
from stages.cache_teacher.corpus.unit_reader import PreparedUnit, Stopped, UnitReader
from stages.cache_teacher.engine.fifo_lock import FifoLock
from stages.cache_teacher.reporting.device_use import (
    DeviceUse,
    ModelOperations,
    model_operations,
)
from stages.cache_teacher.reporting.progress import Progress
from stages.cache_teacher.setup.batch_size import rows_per_forward
from stages.cache_teacher.setup.reference_check import require_agreement
from stages.cache_teacher.teacher.forward import PendingRows, TeacherStep
from stages.cache_teacher.teacher.lazy_teacher import LazyTeacher
from stages.cache_teacher.teacher.teacher import Teacher
from stages.compute.device import current_device
from stages.compute.peak_flops import peak_operations

UNITS_IN_FLIGHT = 3
"""One is read, one on the device, one encoded and written."""
_LAUNCHED = 3


@dataclass(frozen=True, kw_only=True)
class Job:
    """What a unit is made from, but for its documents."""

    config: CacheTeacherConfig
    spec: CacheSpec
    shared: SharedFiles
    teacher: LazyTeacher
    reference_shard: ShardEntry | None = None
    """A finished shard, which the teacher must agree with before it adds to the cache."""


class UnitMaker:
    """Makes units, in any order and for several threads. Its teacher is loaded by ``load``."""

    def __init__(
        self,
        job: Job,
        reader: UnitReader,
        writer: CacheWriter,
        progress: Progress,
    ) -> None:
        self.reader, self.writer = reader, writer
        self._job, self._progress = job, progress
        self._load_lock = threading.Lock()
        self._device_lock = FifoLock()
        self._slots = threading.BoundedSemaphore(_LAUNCHED)
        self._stopping = threading.Event()
        self._loaded: _Loaded | None = None
        self._encoders = ThreadPoolExecutor(default_num_threads(), "encode")

    def load(self) -> Teacher:
        """The teacher, loaded once, and compared with what the cache holds of it.

        Raises ValueError if it cannot be used, CacheError if it is not the one that made the cache.
        """
        with self._load_lock:
            if self._loaded is None:
                teacher = self._job.teacher.load()
                with current_device(teacher.device):
                    self._loaded = self._load(teacher)
            return self._loaded.teacher

    @property
    def rows_per_forward(self) -> int:
        """Rows of a forward pass, once the teacher is loaded."""
        assert self._loaded is not None
        return self._loaded.rows_per_forward

    def make(self, unit: int) -> ShardEntry | None:
        """Make and publish ``unit``; None where the corpus has ended before it."""
        prepared = self.prepare(unit)
        return None if prepared is None else self.finish(prepared)

    def prepare(self, unit: int) -> PreparedUnit | None:
        """Read ``unit``; None where the corpus has ended before it."""
        prepared = self.reader.read(unit)
        if prepared is not None:
            self._device_lock.enqueue(unit)
        return prepared

    def finish(self, prepared: PreparedUnit) -> ShardEntry:
        """Make the rows of a unit that was prepared, and publish them."""
        try:
            self.load()
            with closing(self._rows(prepared)) as rows:
                entry = self.writer.write_unit(
                    prepared.unit,
                    rows,
                    num_documents=prepared.num_documents,
                    num_skipped_documents=prepared.num_skipped_documents,
                    num_dropped_tokens=prepared.packed.num_dropped_tokens,
                    corpus_position=prepared.corpus_position,
                    conversations=prepared.conversations,
                    pool=self._encoders,
                )
        finally:
            self._device_lock.cancel(prepared.unit)
        self._progress.made_unit(entry)
        return entry

    def stop(self) -> None:
        """Read and launch nothing more; what is being launched, on a CPU for long, is abandoned.

        Whole units that the device is done with are published.
        """
        self._stopping.set()
        self.reader.stop()
        self._device_lock.open()

    def close(self) -> None:
        """Free the threads that encode."""
        self._encoders.shutdown()

    def _rows(self, prepared: PreparedUnit) -> Generator[Row, None, None]:
        """The rows of a unit in their order; no forward pass mixes two units."""
        launched: deque[_Launched] = deque()
        try:
            with self._device_lock.acquire(prepared.unit):
                self._progress.begin_unit(prepared.unit, prepared.corpus_position)
                for batch, first_row in self._batches(prepared.packed):
                    if not self._slots.acquire(blocking=not launched):
                        yield from self._collected(prepared.unit, launched.popleft())
                        self._slots.acquire()
                    launched.append(self._launch(batch, prepared.unit, first_row))
                    if launched[-1].pending.is_done:
                        yield from self._collected(prepared.unit, launched.popleft())
            # From here on another thread's unit is on the device.
            while launched:
                yield from self._collected(prepared.unit, launched.popleft())
        finally:
            for _ in launched:
                self._slots.release()

    def _batches(self, packed: PackedUnit) -> Iterator[tuple[PackedUnit, int]]:
        """The rows of each forward pass, and the number of the first."""
        assert self._loaded is not None
        num_rows = self._loaded.rows_per_forward
        for first in range(0, len(packed.token_ids_RT), num_rows):
            yield packed.rows(first, first + num_rows), first

    def _launch(self, batch: PackedUnit, unit: int, first_row: int) -> "_Launched":
        """Give the device a batch, for which there is a slot."""
        assert self._loaded is not None
        try:
            self._check_stopping()
            with current_device(self._loaded.teacher.device):
                return _Launched(self._loaded.step.launch(batch, unit, first_row), batch)
        except BaseException:
            self._slots.release()
            raise

    def _collected(self, unit: int, launched: "_Launched") -> Iterator[Row]:
        """The rows of a batch, once the device is done with them; frees their slot."""
        assert self._loaded is not None
        try:
            rows = launched.pending.rows()
        finally:
            self._slots.release()
        operations = self._loaded.operations
        self._progress.used(
            DeviceUse(
                busy_seconds=launched.pending.device_seconds(),
                num_tokens=launched.batch.token_ids_RT[:, 1:].size,
                num_operations=0.0 if operations is None else operations.of(launched.batch),
            )
        )
        for row in rows:
            yield row
            self._progress.count_row(unit, len(row.token_ids) - 1)

    def _check_stopping(self) -> None:
        if self._stopping.is_set():
            raise Stopped

    def _load(self, teacher: Teacher) -> "_Loaded":
        config, spec = self._job.config, self._job.spec
        step = TeacherStep(teacher, spec, config, self._job.shared, self._check_stopping)
        step.compile()  # in this thread, which Ctrl-C interrupts, if it is the main one
        num_rows = rows_per_forward(config.rows_per_forward, step, spec, teacher.device, _LAUNCHED)
        if self._job.reference_shard is not None:
            require_agreement(self.writer, self._job.reference_shard, step, num_rows)
        if teacher.device.type == "cuda":
            name = torch.cuda.get_device_name(teacher.device)
            self._progress.know_device(peak_operations(name, spec.teacher.dtype))
        return _Loaded(
            teacher=teacher,
            step=step,
            rows_per_forward=num_rows,
            operations=model_operations(teacher.source.directory),
        )


@dataclass(frozen=True)
class _Launched:
    """A batch that the device is at work on; it holds a slot."""

    pending: PendingRows
    batch: PackedUnit


@dataclass(frozen=True, kw_only=True)
class _Loaded:
    teacher: Teacher
    step: TeacherStep
    rows_per_forward: int
    operations: ModelOperations | None
