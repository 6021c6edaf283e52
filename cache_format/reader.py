"""Read a cache: rows in any order, from any number of threads, verified before use.

Input: a cache that was opened, which is not changed. Output: rows as NumPy arrays, and the
teacher's files.
"""

from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import replace
from functools import cached_property
from itertools import accumulate
from pathlib import Path

from cache_format.codec.row_codec import Row
from cache_format.errors import MissingFileError
from cache_format.metadata import layout
from cache_format.metadata.manifest import Manifest
from cache_format.metadata.receipt import ShardEntry, read_teacher_receipt
from cache_format.metadata.spec import CacheSpec, Split
from cache_format.metadata.splits import SPLITS
from cache_format.shard_batches import ShardBatches, corrupt_shard
from cache_format.storage.base import LocalSpace, Storage
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


class Cache:
    """A cache opened for reading. All methods may be called from several threads."""

    def __init__(self, storage: Storage, manifest: Manifest, space: LocalSpace) -> None:
        """Internal: use ``cache_format.open``."""
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
        self._batches = ShardBatches(storage, self._files, manifest.spec)

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
        batch = self._batches.batch(entry, batch_number, with_sketch)
        tables = self.tables  # what is wrong with these is not wrong with the shard
        try:
            return row_of_batch(batch, offset, self.spec, tables)
        except (ValueError, IndexError) as error:
            raise corrupt_shard(self.storage, entry, f"row {number}: {error}") from error

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
