"""Record batches of a cache's shards, verified before they are used; the newest are kept in memory.

Input: shards as the manifest names them, local or as local copies. The manifest's seal covers the
hashes of the receipts, which cover those of the segments that are read here.
"""

import hashlib
import os
import threading
from collections import OrderedDict
from typing import TYPE_CHECKING

from cache_format.errors import (
    CorruptFileError,
    CorruptShardError,
    MissingFileError,
    MissingShardError,
)
from cache_format.metadata import layout
from cache_format.metadata.manifest import require_agreement
from cache_format.metadata.receipt import Segment, ShardEntry, read_receipt, segments_of_batch
from cache_format.metadata.spec import CacheSpec
from cache_format.storage.base import LocalFiles, Storage
from cache_format.storage.os_errors import reading

if TYPE_CHECKING:
    import pyarrow as pa

_BATCHES_KEPT = 32


class ShardBatches:
    """See the top of the file. All methods may be called from several threads."""

    def __init__(self, storage: Storage, files: LocalFiles, spec: CacheSpec) -> None:
        self._storage, self._files, self._spec = storage, files, spec
        self._lock = threading.Lock()
        self._segments: dict[int, tuple[Segment, ...]] = {}
        self._batches: OrderedDict[tuple[int, int, bool], pa.RecordBatch] = OrderedDict()

    def batch(self, entry: ShardEntry, number: int, with_sketch: bool) -> "pa.RecordBatch":
        """Record batch ``number`` of a shard; without sketches, these are left unread.

        Raises CorruptShardError, MissingShardError or StorageError, which name the shard.
        """
        from cache_format.shard import open_batch

        key = (entry.unit, number, with_sketch)
        with self._lock:
            if key in self._batches:
                self._batches.move_to_end(key)
                return self._batches[key]
        targets, *sketch = segments_of_batch(number, self._spec)
        wanted = (0, targets, *sketch) if with_sketch else (0, targets)
        schema, *parts = self._read_segments(entry, wanted)
        unread = () if with_sketch else sketch
        num_absent = sum(self._segments_of(entry)[segment].length for segment in unread)
        rows_before = number * self._spec.rows_per_batch
        num_rows = min(self._spec.rows_per_batch, entry.num_rows - rows_before)
        try:
            batch = open_batch(schema, b"".join(parts), num_absent, entry.unit, self._spec)
            if batch.num_rows != num_rows:
                raise ValueError(f"expected {num_rows} rows, found {batch.num_rows}")
        except ValueError as error:
            message = f"record batch {number}: {error}"
            raise corrupt_shard(self._storage, entry, message) from error
        with self._lock:
            self._batches[key] = batch
            while len(self._batches) > _BATCHES_KEPT:
                self._batches.popitem(last=False)
        return batch

    def _read_segments(self, entry: ShardEntry, numbers: tuple[int, ...]) -> list[bytes]:
        """The bytes of some segments of a shard, compared with their hashes."""
        segments = [self._segments_of(entry)[number] for number in numbers]
        descriptor = self._open(entry)
        try:
            return self._read_open(entry, descriptor, segments)
        except CorruptShardError:
            # A copy that was damaged here says nothing of the shard that it is of.
            if not self._files.drop(entry.file):
                raise
        return self._read_open(entry, self._open(entry), segments)

    def _open(self, entry: ShardEntry) -> int:
        expected = (entry.num_bytes, entry.sha256)
        step = layout.unit_step(entry.unit, entry.file)
        try:
            return self._files.open(entry.file, expected, step)
        except MissingFileError as error:
            raise MissingShardError(error.problem, error.next_step) from error
        except CorruptFileError as error:
            raise CorruptShardError(error.problem, error.next_step) from error

    def _read_open(
        self, entry: ShardEntry, descriptor: int, segments: list[Segment]
    ) -> list[bytes]:
        """Bytes of an open shard; closes it."""
        try:
            with reading(self._files.directory / entry.file):
                self._check_size(entry, os.fstat(descriptor).st_size)
                return [self._read_segment(entry, descriptor, segment) for segment in segments]
        finally:
            os.close(descriptor)

    def _check_size(self, entry: ShardEntry, num_bytes: int) -> None:
        if num_bytes != entry.num_bytes:
            message = f"expected {entry.num_bytes} bytes, found {num_bytes}"
            raise corrupt_shard(self._storage, entry, message)

    def _read_segment(self, entry: ShardEntry, descriptor: int, segment: Segment) -> bytes:
        data = _read_at(descriptor, segment.offset, segment.length)
        found = hashlib.sha256(data).hexdigest()
        if found != segment.sha256:
            message = (
                f"bytes {segment.offset} to {segment.offset + segment.length}: expected SHA-256 "
                f"{segment.sha256}, found {found}"
            )
            raise corrupt_shard(self._storage, entry, message)
        return data

    def _segments_of(self, entry: ShardEntry) -> tuple[Segment, ...]:
        with self._lock:
            known = self._segments.get(entry.unit)
        if known is not None:
            return known
        receipt = read_receipt(self._storage, entry.unit, self._spec, entry.receipt_sha256)
        require_agreement(self._storage, entry, receipt)
        with self._lock:
            self._segments[entry.unit] = receipt.segments
        return receipt.segments


def _read_at(descriptor: int, offset: int, length: int) -> bytes:
    """What is there; the system may give less at a time than it is asked for."""
    pieces = []
    while length > 0 and (piece := os.pread(descriptor, length, offset)):
        pieces.append(piece)
        offset, length = offset + len(piece), length - len(piece)
    return b"".join(pieces)


def corrupt_shard(storage: Storage, entry: ShardEntry, message: str) -> CorruptShardError:
    """What is raised where a shard's bytes are not those that were written."""
    return CorruptShardError(
        f"{storage.locate(entry.file)}: damaged: {message}. "
        f"{layout.unit_step(entry.unit, entry.file)}"
    )
