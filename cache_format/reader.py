"""Read a cache: rows in any order, by any number of threads, every byte checked before it is used.

In: the directory that the writer made. Out: rows as NumPy arrays, the teacher's files, and a
verdict on every checksum. Called by stage two and by the command line's ``inspect`` and ``verify``.
Never writes. Trust goes from the manifest's seal to the receipts' hashes to the blocks' hashes.
"""

import hashlib
import os
import threading
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Callable, Iterator
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING

from cache_format import layout
from cache_format.codec import Row
from cache_format.errors import (
    CorruptFileError,
    CorruptShardError,
    ForeignDirectoryError,
    IncompleteCacheError,
    MissingFileError,
    MissingShardError,
)
from cache_format.manifest import Manifest, fold, read_manifest, read_spec
from cache_format.receipt import Block, ShardEntry, read_receipt, read_teacher_receipt
from cache_format.spec import CacheSpec, Split
from cache_format.verification import Problem, check_file, verify

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["Cache", "Problem", "open_cache"]

_BATCHES_KEPT = 32


def open_cache(path: str | Path, *, allow_incomplete: bool = False) -> "Cache":
    """The cache at ``path``, its manifest checked.

    With ``allow_incomplete``, one that is still being written can be opened too, with the shards
    that are finished by now. Raises IncompleteCacheError otherwise, ForeignDirectoryError if there
    is no cache, CorruptFileError if the manifest is damaged.
    """
    root = Path(path)
    if (root / layout.MANIFEST).exists():
        manifest = read_manifest(root)
    elif (root / layout.SPEC).exists():
        manifest = _manifest_of_unfinished(root)
    else:
        raise ForeignDirectoryError(
            f"{root}: no cache: expected {layout.MANIFEST} in it. Give the directory that "
            "`pipeline cache-teacher --out` wrote."
        )
    if not manifest.complete and not allow_incomplete:
        raise IncompleteCacheError(
            f"{root}: the cache is still being written, or was cut short: "
            f"{len(manifest.shards)} shards are finished. Wait for it, or run the same "
            "`pipeline cache-teacher` command again: it goes on from there."
        )
    return Cache(root, manifest)


class Cache:
    """A cache opened for reading. All methods may be called from several threads."""

    def __init__(self, path: Path, manifest: Manifest) -> None:
        """Internal: use ``open_cache``."""
        self.path = path
        self.manifest = manifest
        self._shards: dict[str, list[ShardEntry]] = {"train": [], "validation": []}
        for entry in manifest.shards:
            self._shards[entry.split].append(entry)
        self._row_ends = {
            split: list(accumulate(entry.num_rows for entry in entries))
            for split, entries in self._shards.items()
        }
        self._lock = threading.Lock()
        self._blocks: dict[int, tuple[Block, ...]] = {}
        self._batches: OrderedDict[tuple[int, int, bool], pa.RecordBatch] = OrderedDict()
        self._checked_attachments: set[str] = set()

    @property
    def spec(self) -> CacheSpec:
        """What the cache was made from."""
        return self.manifest.spec

    @property
    def cache_id(self) -> str:
        """Identity of the cache: the hash of its spec."""
        return self.manifest.cache_id

    def shards(self, split: Split) -> list[ShardEntry]:
        """The shards of ``split`` in rising order of unit."""
        return list(self._shards[split])

    def num_rows(self, split: Split) -> int:
        """Rows of ``split``."""
        return self._row_ends[split][-1] if self._row_ends[split] else 0

    def read_row(self, split: Split, index: int, *, with_sketch: bool = True) -> tuple[int, Row]:
        """The unit and the row ``index`` of ``split``, counted over its shards.

        Reads and decompresses one record batch, of which the last few are remembered. Raises
        IndexError, or a CacheError that names the shard.
        """
        if not 0 <= index < self.num_rows(split):
            raise IndexError(f"row {index}: {split} has {self.num_rows(split)} rows")
        ends = self._row_ends[split]
        position = bisect_right(ends, index)
        entry = self._shards[split][position]
        return entry.unit, self._row(entry, index - ends[position] + entry.num_rows, with_sketch)

    def iter_rows(self, split: Split, *, with_sketch: bool = True) -> Iterator[tuple[int, Row]]:
        """Every row of ``split`` with its unit, in order."""
        for index in range(self.num_rows(split)):
            yield self.read_row(split, index, with_sketch=with_sketch)

    def attachments(self) -> dict[str, tuple[int, str]]:
        """Size and SHA-256 of each file in ``teacher/``, by name."""
        expected = self.manifest.teacher_receipt_sha256
        if expected is None:
            return {}
        return read_teacher_receipt(self.path, self.spec, expected).files

    def attachment(self, name: str) -> Path:
        """The path of ``teacher/name``, whose content is compared with its hash the first time."""
        path = self.path / layout.TEACHER / name
        if name not in self._checked_attachments:
            files = self.attachments()
            if name not in files:
                raise MissingFileError(
                    f"{path}: the cache has no such file of the teacher; it has "
                    f"{', '.join(files) or 'none'}. {layout.TEACHER_STEP}"
                )
            check_file(path, files[name], layout.TEACHER_STEP)
            self._checked_attachments.add(name)
        return path

    def teacher_directory(self) -> Path:
        """``teacher/``, every file of it compared with its hash the first time."""
        for name in self.attachments():
            self.attachment(name)
        return self.path / layout.TEACHER

    def verify(self, report: Callable[[int, int], None] | None = None) -> list[Problem]:
        """Every checksum of the cache, and files that do not belong; the empty list is good news.

        ``report`` is told the bytes read so far and in all.
        """
        return verify(self, report)

    def _row(self, entry: ShardEntry, index: int, with_sketch: bool) -> Row:
        from cache_format.shard import row_of_batch

        number, offset = divmod(index, self.spec.rows_per_batch)
        batch = self._batch(entry, number, with_sketch)
        try:
            return row_of_batch(batch, offset, self.spec)
        except (ValueError, IndexError) as error:
            raise _corrupt_shard(self.path, entry, f"row {index}: {error}") from error

    def _batch(self, entry: ShardEntry, number: int, with_sketch: bool) -> "pa.RecordBatch":
        from cache_format.shard import open_batch

        key = (entry.unit, number, with_sketch)
        with self._lock:
            if key in self._batches:
                self._batches.move_to_end(key)
                return self._batches[key]
        schema_block, batch_block = self._read_blocks(entry, (0, 1 + number))
        try:
            batch = open_batch(
                schema_block, batch_block, entry.unit, self.spec, with_sketch=with_sketch
            )
        except ValueError as error:
            message = f"record batch {number}: {error}"
            raise _corrupt_shard(self.path, entry, message) from error
        with self._lock:
            self._batches[key] = batch
            while len(self._batches) > _BATCHES_KEPT:
                self._batches.popitem(last=False)
        return batch

    def _read_blocks(self, entry: ShardEntry, numbers: tuple[int, ...]) -> list[bytes]:
        """The bytes of some blocks of a shard, compared with their hashes."""
        blocks = self._blocks_of(entry)
        path = self.path / entry.file
        try:
            descriptor = os.open(path, os.O_RDONLY)
        except FileNotFoundError as error:
            raise MissingShardError(
                f"{path}: missing. {layout.shard_step(entry.unit, entry.file)}"
            ) from error
        try:
            num_bytes = os.fstat(descriptor).st_size
            if num_bytes != entry.num_bytes:
                message = f"expected {entry.num_bytes} bytes, found {num_bytes}"
                raise _corrupt_shard(self.path, entry, message)
            return [self._read_block(entry, descriptor, blocks[number]) for number in numbers]
        finally:
            os.close(descriptor)

    def _read_block(self, entry: ShardEntry, descriptor: int, block: Block) -> bytes:
        data = os.pread(descriptor, block.length, block.offset)
        found = hashlib.sha256(data).hexdigest()
        if found != block.sha256:
            message = (
                f"bytes {block.offset} to {block.offset + block.length}: expected SHA-256 "
                f"{block.sha256}, found {found}"
            )
            raise _corrupt_shard(self.path, entry, message)
        return data

    def _blocks_of(self, entry: ShardEntry) -> tuple[Block, ...]:
        with self._lock:
            known = self._blocks.get(entry.unit)
        if known is not None:
            return known
        receipt = read_receipt(self.path, entry.unit, self.spec, entry.receipt_sha256)
        blocks = receipt.blocks
        num_batches = -(-entry.num_rows // self.spec.rows_per_batch)
        if len(blocks) != 1 + num_batches or any(
            block.offset < 0 or block.length < 0 or block.offset + block.length > entry.num_bytes
            for block in blocks
        ):
            path = self.path / layout.receipt_file(entry.unit)
            step = layout.shard_step(entry.unit, entry.file)
            raise CorruptFileError(f"{path}: its blocks do not fit its shard. {step}")
        with self._lock:
            self._blocks[entry.unit] = blocks
        return blocks


def _corrupt_shard(root: Path, entry: ShardEntry, message: str) -> CorruptShardError:
    return CorruptShardError(
        f"{root / entry.file}: damaged: {message}. {layout.shard_step(entry.unit, entry.file)}"
    )


def _manifest_of_unfinished(root: Path) -> Manifest:
    """What the manifest would be if the writer stopped now."""
    spec = read_spec(root / layout.SPEC)
    teacher = None
    if (root / layout.TEACHER_RECEIPT).exists():
        teacher = read_teacher_receipt(root, spec, None)
    entries = [read_receipt(root, u, spec, None).entry for u in layout.receipt_units(root)]
    return fold(spec, entries, teacher, num_tokens_requested=0, complete=False)
