"""Write a cache: units in any order, by any number of processes, safe against kills.

Input: a spec, the teacher's files, and the rows of each unit. Output: a directory as ``README.md``
specifies it. A unit is finished once its receipt exists. The receipt is published after the shard,
and exclusively: so an interrupted unit is never taken as finished, and if two processes make the
same unit, only one of the results is kept.
"""

import hashlib
from collections.abc import Callable, Iterable
from concurrent.futures import Executor
from dataclasses import replace
from pathlib import Path
from typing import Self

from cache_format.codec.row_codec import Row
from cache_format.errors import (
    CHOOSE_DIRECTORY,
    Action,
    CorruptFileError,
    ForeignDirectoryError,
    MissingFileError,
    NextStep,
    SpecMismatchError,
)
from cache_format.metadata import layout
from cache_format.metadata.manifest import Manifest, fold, read_manifest, read_spec, spec_bytes
from cache_format.metadata.receipt import (
    ConversationCounts,
    Receipt,
    ShardEntry,
    TeacherReceipt,
    read_receipt,
    read_teacher_receipt,
    receipt_bytes,
    teacher_receipt_bytes,
)
from cache_format.metadata.recipe_file import seal_recipe
from cache_format.metadata.spec import CacheSpec, differences
from cache_format.shard import EncodedShard, encode_shard
from cache_format.storage.atomic import files_below, is_temporary
from cache_format.storage.base import Storage, on_each, read_file
from cache_format.storage.open import storage_at
from cache_format.tables.shared_files import SharedFiles, files_of, require_shared


class CacheWriter:
    """A cache opened for writing."""

    def __init__(self, storage: Storage, spec: CacheSpec, shared: SharedFiles) -> None:
        """Internal: use ``create_or_open``."""
        self.storage = storage
        self.spec = spec
        self.shared = shared

    @classmethod
    def create_or_open(cls, path: str | Path, spec: CacheSpec, shared: SharedFiles) -> Self:
        """The cache at ``path``, a directory or a URL, created if there is nothing.

        Raises SpecMismatchError if the cache was made from another spec, ForeignDirectoryError if
        the directory holds something else, ValueError unless ``shared`` are the files of ``spec``.
        """
        require_shared(shared, spec)
        storage = storage_at(path)
        found = begun_spec(storage)
        if found is not None:
            require_same_spec(storage, spec, found)
        storage.prepare("")
        storage.publish_exclusive(layout.SPEC, spec_bytes(spec))
        for name in (layout.SHARDS, layout.RECEIPTS):
            storage.prepare(name)
        # Another process may have created the cache meanwhile.
        require_same_spec(storage, spec, read_spec(storage))
        files = files_of(spec)
        for name, data in shared.to_bytes().items():
            _publish_known(storage, name, data, files[name].next_step)
        return cls(storage, spec, shared)

    @property
    def path(self) -> Path | str:
        """Its directory or URL."""
        return self.storage.root

    def finished_units(self) -> dict[int, ShardEntry]:
        """The units whose receipt is whole and whose shard is there in its full size."""
        units = layout.receipt_units(self.storage)
        receipts = on_each(self.storage, self._whole_receipt, units)
        return {receipt.entry.unit: receipt.entry for receipt in receipts if receipt is not None}

    def write_attachments(self, build: Callable[[Path], None]) -> None:
        """Publish the files that ``build`` puts into the directory it is given as ``teacher/``.

        Does nothing if they are there already. Names may have letters, digits, ``.``, ``-`` and
        ``_``, and files may lie in subdirectories; ValueError otherwise.
        """
        target, receipt = layout.TEACHER, layout.TEACHER_RECEIPT
        while self._teacher_receipt() is None:
            files: dict[str, tuple[int, str]] | None = None
            try:
                with self.storage.publish_directory(target) as directory:
                    build(directory)
                    files = _describe(directory)
                    if self._teacher_receipt() is None:  # what is there now, nobody vouches for
                        self.storage.remove(receipt)
                        self.storage.remove_directory(target)
            except FileExistsError:
                if files is None:
                    raise
                # Another process was faster.
            self.storage.publish_exclusive(receipt, teacher_receipt_bytes(files, self.spec))

    def write_recipe(self, toml: str) -> None:
        """Make ``recipe.toml`` hold ``toml`` and its seal, in place of what it held before."""
        self.storage.publish(layout.RECIPE, seal_recipe(toml, self.spec.cache_id))

    def write_unit(
        self,
        unit: int,
        rows: Iterable[Row],
        *,
        num_documents: int,
        num_skipped_documents: int = 0,
        num_dropped_tokens: int = 0,
        corpus_position: str = "",
        conversations: ConversationCounts | None = None,
        pool: Executor | None = None,
    ) -> ShardEntry:
        """Publish the shard of ``unit``, then its receipt; returns what the receipt says.

        A finished unit is left as it is and ``rows`` is not touched. A unit may have no rows. With
        a ``pool`` of threads, rows are encoded in it, to the same bytes; a few of them are taken
        from ``rows`` ahead.

        Raises ValueError naming row, column and position if a row breaks a rule.
        """
        existing = self._whole_or_discarded(unit)
        if existing is not None:
            return existing
        shard = encode_shard(rows, self.spec, self.shared, unit, pool=pool)
        sha256 = shard.sha256
        entry = ShardEntry(
            unit=unit,
            file=layout.shard_file(unit, sha256),
            corpus=self.spec.corpus_name_of(unit),
            split=self.spec.split_of(unit),
            num_rows=shard.num_rows,
            num_tokens=shard.num_tokens,
            num_documents=num_documents,
            num_skipped_documents=num_skipped_documents,
            num_dropped_tokens=num_dropped_tokens,
            corpus_position=corpus_position,
            num_bytes=shard.data.size,
            sha256=sha256,
            receipt_sha256="0" * 64,
            statistics=shard.statistics,
            conversations=conversations,
        )
        return self._publish(entry, shard)

    def adopt_unit(self, entry: ShardEntry, receipt: bytes) -> ShardEntry:
        """Publish the receipt of a unit made elsewhere, as it is; its shard must be in its place.

        A finished unit is left as it is. Returns what the cache now holds of the unit.
        """
        winner = self._whole_or_discarded(entry.unit)
        while winner is None:
            if self.storage.publish_exclusive(layout.receipt_file(entry.unit), receipt):
                winner = entry
            else:  # another process was faster
                winner = self._whole_or_discarded(entry.unit)
        self._remove_shards(entry.unit, keep=winner.file)
        return winner

    def discard_unit(self, unit: int) -> None:
        """Remove the receipt and every shard of ``unit``, so that it can be made again."""
        self.storage.remove(layout.receipt_file(unit))
        self._remove_shards(unit, keep=None)

    def has_complete_manifest(self) -> bool:
        """Whether readers may already open the cache."""
        try:
            return read_manifest(self.storage).complete
        except (CorruptFileError, MissingFileError):
            return False

    def publish_manifest(self, num_tokens_requested: int, complete: bool) -> Manifest:
        """Publish the table of contents of all finished units.

        A complete one stays where an incomplete one would replace it: while a cache is extended,
        or a slower process is still at work, runs that use it are not locked out.
        """
        # One process after the other: one that is killed leaves no table older than the others'.
        with self.storage.locked(layout.RECEIPTS):
            while True:
                if not complete and self.has_complete_manifest():
                    return read_manifest(self.storage)
                receipts = self._receipt_names()
                # Another process may have published a receipt whose name is not durable yet.
                self.storage.sync(layout.RECEIPTS)
                manifest = fold(
                    self.spec,
                    self.finished_units().values(),
                    self._teacher_receipt(),
                    num_tokens_requested=num_tokens_requested,
                    complete=complete,
                )
                self.storage.publish(layout.MANIFEST, manifest.to_bytes())
                # Where there are no locks, another may have published while this one was folding.
                if self._receipt_names() == receipts:
                    self._remove_orphans(manifest)
                    return manifest

    def _publish(self, entry: ShardEntry, shard: EncodedShard) -> ShardEntry:
        data = receipt_bytes(Receipt(entry=entry, segments=shard.segments), self.spec)
        winner: ShardEntry | None = None
        while winner is None:
            with self.storage.publish_file(entry.file) as sink:
                sink.write(memoryview(shard.data))
            if self.storage.publish_exclusive(layout.receipt_file(entry.unit), data):
                winner = replace(entry, receipt_sha256=hashlib.sha256(data).hexdigest())
            else:  # another process was faster
                winner = self._whole_or_discarded(entry.unit)
        self._remove_shards(entry.unit, keep=winner.file)
        return winner

    def _whole_or_discarded(self, unit: int) -> ShardEntry | None:
        """The entry of a finished unit. A receipt that nothing whole is behind is removed."""
        receipt = self._whole_receipt(unit)
        if receipt is not None:
            return receipt.entry
        name = layout.receipt_file(unit)
        if self.storage.has(name) and self._whole_receipt(unit) is None:
            self.storage.remove(name)
        return None

    def _whole_receipt(self, unit: int) -> Receipt | None:
        try:
            receipt = read_receipt(self.storage, unit, self.spec, None)
        except (CorruptFileError, MissingFileError):
            return None
        found = self.storage.size(receipt.entry.file)
        return receipt if found == receipt.entry.num_bytes else None

    def _receipt_names(self) -> set[str]:
        names = self.storage.list_names(layout.RECEIPTS)
        return {name for name in names if name.endswith(".json")}

    def _teacher_receipt(self) -> TeacherReceipt | None:
        """The receipt of ``teacher/`` if it and all its files are there in their full size."""
        try:
            receipt = read_teacher_receipt(self.storage, self.spec, None)
        except (CorruptFileError, MissingFileError):
            return None
        for name, (num_bytes, _) in receipt.files.items():
            if self.storage.size(f"{layout.TEACHER}/{name}") != num_bytes:
                return None
        return receipt

    def _remove_orphans(self, manifest: Manifest) -> None:
        """Remove shards that killed processes left of finished units.

        A living one that has just made such a shard finds the receipt, and gives way too.
        """
        files = {f"{entry.unit:05d}": entry.file for entry in manifest.shards}
        for name in self.storage.list_names(layout.SHARDS):
            unit, _, _ = name.partition("-")
            if (
                unit in files
                and name.endswith(".arrow")
                and f"{layout.SHARDS}/{name}" != files[unit]
            ):
                self.storage.remove(f"{layout.SHARDS}/{name}")

    def _remove_shards(self, unit: int, *, keep: str | None) -> None:
        """Remove what killed or slower processes left of ``unit``."""
        for name in self.storage.list_names(layout.SHARDS):
            is_shard = name.startswith(f"{unit:05d}-") and name.endswith(".arrow")
            if is_shard and f"{layout.SHARDS}/{name}" != keep:
                self.storage.remove(f"{layout.SHARDS}/{name}")


def begun_spec(storage: Storage) -> CacheSpec | None:
    """The spec of the cache in ``storage``; None if it is empty.

    Raises ForeignDirectoryError if it contains anything else.
    """
    # Listed before the look for a spec: another process that creates the cache writes that first.
    names = [name for name in storage.list_names("") if not is_temporary(Path(name))]
    if storage.size(layout.SPEC) is not None:
        return read_spec(storage)
    if storage.size(layout.MANIFEST) is not None:
        return read_manifest(storage).spec
    if names:
        raise ForeignDirectoryError(
            f"{storage.root}: not a cache: expected {layout.SPEC} or an empty directory, but it "
            f"holds {', '.join(names[:5])}.",
            CHOOSE_DIRECTORY,
        )
    return None


def _publish_known(storage: Storage, name: str, data: bytes, next_step: str) -> None:
    """Write a file whose bytes the spec names; one that is there in full is left as it is."""
    is_new = storage.publish_exclusive(name, data)
    if not is_new and read_file(storage, name, next_step) != data:
        storage.publish(name, data)


def require_same_spec(
    storage: Storage, expected: CacheSpec, found: CacheSpec, called: Callable[[str], str] = str
) -> None:
    """Raise SpecMismatchError naming every field in which the two differ, as it is ``called``."""
    fields = differences(expected, found, called)
    if fields:
        raise SpecMismatchError(
            f"{storage.root}: this cache was made from another recipe, teacher or corpus:\n  "
            + "\n  ".join(fields)
            + "\n",
            NextStep(
                "Choose another directory, or change the recipe to match; nothing was changed.",
                Action.CHOOSE_DIRECTORY,
            ),
        )


def _describe(directory: Path) -> dict[str, tuple[int, str]]:
    """Size and SHA-256 of every file in ``directory``, by its name relative to it."""
    files = {}
    for path in files_below(directory):
        name = path.relative_to(directory).as_posix()
        if path.is_symlink():
            raise ValueError(f"{name}: a cache must not hold symbolic links")
        layout.require_attachment_name(name)
        with path.open("rb") as source:
            digest = hashlib.file_digest(source, "sha256").hexdigest()
        files[name] = (path.stat().st_size, digest)
    return files
