"""Read a cache: rows in any order, from any number of threads, verified before use.

Input: a directory or URL, which is not changed. Output: rows as NumPy arrays, and the teacher's
files. The manifest's seal covers the hashes of the receipts, which cover those of the segments.
"""

import hashlib
import os
import threading
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import replace
from functools import cached_property
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING

from cache_format.codec.row_codec import Row
from cache_format.errors import (
    Action,
    CorruptFileError,
    CorruptShardError,
    ForeignDirectoryError,
    IncompleteCacheError,
    MissingFileError,
    MissingShardError,
    NextStep,
)
from cache_format.metadata import layout
from cache_format.metadata.manifest import (
    Manifest,
    fold,
    read_manifest,
    read_spec,
    require_agreement,
)
from cache_format.metadata.receipt import (
    Segment,
    ShardEntry,
    read_receipt,
    read_teacher_receipt,
    segments_of_batch,
)
from cache_format.metadata.spec import CacheSpec, Split
from cache_format.metadata.splits import SPLITS
from cache_format.metadata.unit_ranges import looks_like_part, ranges_text, unit_ranges
from cache_format.storage.base import LocalSpace, Storage, on_each
from cache_format.storage.open import storage_at
from cache_format.storage.os_errors import reading
from cache_format.tables.hidden_transform import HiddenTransform
from cache_format.tables.principal_components import Projection
from cache_format.tables.shared_files import (
    SharedFiles,
    read_moment,
    read_projection,
    read_ranks,
    read_transform,
)
from cache_format.tables.tail_moment import MomentTransform
from cache_format.tables.vocabulary_ranks import RankTable

if TYPE_CHECKING:
    import pyarrow as pa

_BATCHES_KEPT = 32


def open_cache(
    path: str | Path, *, allow_incomplete: bool = False, space: LocalSpace | None = None
) -> "Cache":
    """Open the cache at ``path``, a directory or a URL, and check its manifest.

    With ``allow_incomplete``, a cache that is still being written can be opened too, with the
    shards that are finished so far. Raises IncompleteCacheError otherwise, ForeignDirectoryError if
    there is no cache, CorruptFileError if the manifest is damaged.
    """
    storage = storage_at(path)
    root = storage.root
    if storage.size(layout.MANIFEST) is not None:
        manifest = read_manifest(storage)
    elif storage.size(layout.SPEC) is not None:
        manifest = _manifest_of_unfinished(storage)
    else:
        raise ForeignDirectoryError(
            f"{root}: not a cache: expected {layout.MANIFEST} in it.",
            NextStep("Give a directory that stage one wrote.", Action.NAME_CACHE),
        )
    if not manifest.complete and not allow_incomplete:
        units = unit_ranges(manifest)
        if looks_like_part(units):
            raise IncompleteCacheError(
                f"{root}: looks like a part of a cache: it holds units {ranges_text(units)}; "
                "others are missing.",
                NextStep(
                    "If it is one of several parts, merge them. If workers share it and some did "
                    "not finish, run stage one without workers to make their units.",
                    Action.FINISH_PARTS,
                ),
            )
        raise IncompleteCacheError(
            f"{root}: the cache is still being written, or its writing was interrupted: "
            f"{len(manifest.shards)} shards are finished.",
            layout.make_again("Wait for it, or", "it resumes from there."),
        )
    return Cache(storage, manifest, space or LocalSpace())


class Cache:
    """A cache opened for reading. All methods may be called from several threads."""

    def __init__(self, storage: Storage, manifest: Manifest, space: LocalSpace) -> None:
        """Internal: use ``open_cache``."""
        self.storage = storage
        self.manifest = manifest
        self._files = storage.local_files(manifest.cache_id, space)
        self._shards = {
            split: [entry for entry in manifest.shards if entry.split in (None, split)]
            for split in SPLITS
        }
        self._row_ends = {
            split: list(accumulate(len(self.rows_of(split, entry)) for entry in entries))
            for split, entries in self._shards.items()
        }
        self._lock = threading.Lock()
        self._segments: dict[int, tuple[Segment, ...]] = {}
        self._batches: OrderedDict[tuple[int, int, bool], pa.RecordBatch] = OrderedDict()

    @property
    def path(self) -> Path | str:
        """Its directory or URL."""
        return self.storage.root

    @property
    def max_local_bytes(self) -> int | None:
        """Limit on the size of local copies of its shards; None if the cache itself is local."""
        return self._files.max_bytes

    @property
    def spec(self) -> CacheSpec:
        """What the cache was made from."""
        return self.manifest.spec

    @property
    def cache_id(self) -> str:
        """Identity of the cache: the hash of its spec."""
        return self.manifest.cache_id

    @cached_property
    def ranks(self) -> RankTable:
        """The ids in order of frequency, checked against the spec's hash."""
        return read_ranks(self.storage, self.spec)

    @cached_property
    def projection(self) -> Projection | None:
        """W of a ``pca`` sketch, [D, d], checked against the spec's hash; None for other kinds."""
        return read_projection(self.storage, self.spec)

    @cached_property
    def transform(self) -> HiddenTransform | None:
        """Makes hidden states, [T, D], of ``row.coefficients`` (``transform.states``); None where
        targets hold no states. Checked against the spec's hash."""
        return read_transform(self.storage, self.spec)

    @cached_property
    def moment(self) -> MomentTransform | None:
        """What the tail's moments are taken in; None where targets hold none. Checked against the
        spec's hash."""
        return read_moment(self.storage, self.spec)

    @property
    def shared(self) -> SharedFiles:
        """The files that all shards share, checked against the spec's hashes."""
        return replace(self.tables, projection=self.projection)

    @cached_property
    def tables(self) -> SharedFiles:
        """What is needed to decode rows; the projection of sketches is not."""
        return SharedFiles(ranks=self.ranks, transform=self.transform, moment=self.moment)

    def shards(self, split: Split) -> list[ShardEntry]:
        """The shards of ``split`` in order of unit; all shards if the rows of units are split."""
        return list(self._shards[split])

    def rows_of(self, split: Split, entry: ShardEntry) -> range:
        """The rows of a shard that belong to ``split``."""
        return self.manifest.rows_of(split, entry)

    def num_rows(self, split: Split) -> int:
        """Number of rows in ``split``."""
        return self._row_ends[split][-1] if self._row_ends[split] else 0

    def corpus_of_row(self, split: Split, index: int) -> str | None:
        """The name of the corpus that row ``index`` of ``split`` is from; None where there is only
        one."""
        return self._shards[split][bisect_right(self._row_ends[split], index)].corpus

    def read_row(self, split: Split, index: int, *, with_sketch: bool = True) -> tuple[int, Row]:
        """The unit and the row with number ``index`` of ``split``, counted over all its shards.

        Reads and decompresses a whole record batch; the most recently used ones are kept in memory.
        Raises IndexError, or a CacheError that names the shard.
        """
        if not 0 <= index < self.num_rows(split):
            raise IndexError(f"row {index}: {split} has {self.num_rows(split)} rows")
        ends = self._row_ends[split]
        position = bisect_right(ends, index)
        entry = self._shards[split][position]
        rows = self.rows_of(split, entry)
        number = rows[index - ends[position] + len(rows)]
        return entry.unit, self.read_row_of(entry, number, with_sketch=with_sketch)

    def read_row_of(self, entry: ShardEntry, number: int, *, with_sketch: bool = True) -> Row:
        """Row ``number`` of a shard, in any split; otherwise like ``read_row``."""
        from cache_format.shard import row_of_batch

        batch_number, offset = divmod(number, self.spec.rows_per_batch)
        batch = self._batch(entry, batch_number, with_sketch)
        tables = self.tables  # what is wrong with these is not wrong with the shard
        try:
            return row_of_batch(batch, offset, self.spec, tables)
        except (ValueError, IndexError) as error:
            raise _corrupt_shard(self.storage, entry, f"row {number}: {error}") from error

    def iter_rows(self, split: Split, *, with_sketch: bool = True) -> Iterator[tuple[int, Row]]:
        """Every row of ``split``, in order, after the number of its unit."""
        for index in range(self.num_rows(split)):
            yield self.read_row(split, index, with_sketch=with_sketch)

    def attachments(self) -> dict[str, tuple[int, str]]:
        """Size and SHA-256 of each file in ``teacher/``, by name."""
        expected = self.manifest.teacher_receipt_sha256
        if expected is None:
            return {}
        return read_teacher_receipt(self.storage, self.spec, expected).files

    def attachment(self, name: str) -> Path:
        """The path of ``teacher/name``, after checking its content against its hash."""
        file, files = f"{layout.TEACHER}/{name}", self.attachments()
        if name not in files:
            raise MissingFileError(
                f"{self.storage.locate(file)}: the cache has no such file of the teacher; it has "
                f"{', '.join(files) or 'none'}.",
                layout.TEACHER_STEP,
            )
        # Each time: a file may change after it was read once, and it is read seldom.
        return self._files.path(file, files[name], layout.TEACHER_STEP)

    def teacher_directory(self) -> Path:
        """The path of ``teacher/``, after checking every file in it against its hash."""
        for name in self.attachments():
            self.attachment(name)
        return self._files.directory / layout.TEACHER

    def _batch(self, entry: ShardEntry, number: int, with_sketch: bool) -> "pa.RecordBatch":
        from cache_format.shard import open_batch

        key = (entry.unit, number, with_sketch)
        with self._lock:
            if key in self._batches:
                self._batches.move_to_end(key)
                return self._batches[key]
        targets, *sketch = segments_of_batch(number, self.spec)
        wanted = (0, targets, *sketch) if with_sketch else (0, targets)
        schema, *parts = self._read_segments(entry, wanted)
        unread = () if with_sketch else sketch
        num_absent = sum(self._segments_of(entry)[segment].length for segment in unread)
        rows_before = number * self.spec.rows_per_batch
        num_rows = min(self.spec.rows_per_batch, entry.num_rows - rows_before)
        try:
            batch = open_batch(schema, b"".join(parts), num_absent, entry.unit, self.spec)
            if batch.num_rows != num_rows:
                raise ValueError(f"expected {num_rows} rows, found {batch.num_rows}")
        except ValueError as error:
            message = f"record batch {number}: {error}"
            raise _corrupt_shard(self.storage, entry, message) from error
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
            raise _corrupt_shard(self.storage, entry, message)

    def _read_segment(self, entry: ShardEntry, descriptor: int, segment: Segment) -> bytes:
        data = _read_at(descriptor, segment.offset, segment.length)
        found = hashlib.sha256(data).hexdigest()
        if found != segment.sha256:
            message = (
                f"bytes {segment.offset} to {segment.offset + segment.length}: expected SHA-256 "
                f"{segment.sha256}, found {found}"
            )
            raise _corrupt_shard(self.storage, entry, message)
        return data

    def _segments_of(self, entry: ShardEntry) -> tuple[Segment, ...]:
        with self._lock:
            known = self._segments.get(entry.unit)
        if known is not None:
            return known
        receipt = read_receipt(self.storage, entry.unit, self.spec, entry.receipt_sha256)
        require_agreement(self.storage, entry, receipt)
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


def _corrupt_shard(storage: Storage, entry: ShardEntry, message: str) -> CorruptShardError:
    return CorruptShardError(
        f"{storage.locate(entry.file)}: damaged: {message}. "
        f"{layout.unit_step(entry.unit, entry.file)}"
    )


def _manifest_of_unfinished(storage: Storage) -> Manifest:
    """What the manifest would be if the writer stopped now."""
    spec = read_spec(storage)
    teacher = None
    if storage.size(layout.TEACHER_RECEIPT) is not None:
        teacher = read_teacher_receipt(storage, spec, None)
    units = layout.receipt_units(storage)
    receipts = on_each(storage, lambda unit: read_receipt(storage, unit, spec, None), units)
    entries = [receipt.entry for receipt in receipts]
    return fold(spec, entries, teacher, num_tokens_requested=0, complete=False)
