"""Write a cache: units in any order, by any number of processes, killed at any moment.

In: a spec, the teacher's files, and for each unit its rows. Out: a directory as ``README.md``
specifies it. Called by stage one. A unit counts once its receipt is there; the receipt is published
after the shard, exclusively. So nothing that was killed half-way is ever counted, and two processes
that make the same unit end with one.
"""

import hashlib
import shutil
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Self

from cache_format import layout
from cache_format.atomic import (
    atomic_file,
    fsync_directory,
    is_temporary,
    naming_full_disks,
    publish_bytes,
    publish_directory,
    publish_exclusive,
    remove_leftovers,
)
from cache_format.codec import Row
from cache_format.errors import (
    CorruptFileError,
    ForeignDirectoryError,
    MissingFileError,
    SpecMismatchError,
)
from cache_format.manifest import Manifest, fold, read_manifest, read_spec, spec_bytes
from cache_format.receipt import (
    Receipt,
    ShardEntry,
    TeacherReceipt,
    read_receipt,
    read_teacher_receipt,
    receipt_bytes,
    teacher_receipt_bytes,
)
from cache_format.shard import EncodedShard, encode_shard
from cache_format.spec import CacheSpec, differences


class CacheWriter:
    """A cache directory opened for writing."""

    def __init__(self, path: Path, spec: CacheSpec) -> None:
        """Internal: use ``create_or_open``."""
        self.path = path
        self.spec = spec

    @classmethod
    def create_or_open(cls, path: str | Path, spec: CacheSpec) -> Self:
        """The cache at ``path``, created if there is nothing or an empty directory.

        Raises SpecMismatchError if it was made from another spec, ForeignDirectoryError if the
        directory holds something else.
        """
        path = Path(path)
        found = _found_spec(path)
        if found is not None:
            _require_same_spec(path, spec, found)
        with naming_full_disks(path):
            path.mkdir(parents=True, exist_ok=True)
            remove_leftovers(path)
            if publish_exclusive(path / layout.SPEC, spec_bytes(spec)):
                fsync_directory(path.parent)
            for name in (layout.SHARDS, layout.RECEIPTS):
                (path / name).mkdir(exist_ok=True)
                remove_leftovers(path / name)
            fsync_directory(path)
        # Another process may have created the cache meanwhile.
        _require_same_spec(path, spec, read_spec(path / layout.SPEC))
        return cls(path, spec)

    def finished_units(self) -> dict[int, ShardEntry]:
        """The units whose receipt is whole and whose shard is there in its full size."""
        entries = {}
        for unit in layout.receipt_units(self.path):
            receipt = self._whole_receipt(unit)
            if receipt is not None:
                entries[unit] = receipt.entry
        return entries

    def write_attachments(self, build: Callable[[Path], None]) -> None:
        """Publish the files that ``build`` puts into the directory it is given as ``teacher/``.

        Does nothing if they are there already. Names may have letters, digits, ``.``, ``-`` and
        ``_``, and files may lie in subdirectories; ValueError otherwise.
        """
        if self._teacher_receipt() is not None:
            return
        target, receipt = self.path / layout.TEACHER, self.path / layout.TEACHER_RECEIPT
        files: dict[str, tuple[int, str]] | None = None
        try:
            with publish_directory(target) as directory:
                build(directory)
                files = _describe(directory)
                if self._teacher_receipt() is None:  # what is there now, nobody vouches for
                    receipt.unlink(missing_ok=True)
                    shutil.rmtree(target, ignore_errors=True)
        except FileExistsError:
            if files is None:
                raise
            # Another process was faster.
        publish_exclusive(receipt, teacher_receipt_bytes(files, self.spec))

    def write_unit(
        self,
        unit: int,
        rows: Iterable[Row],
        *,
        num_documents: int,
        num_skipped_documents: int = 0,
        num_dropped_tokens: int = 0,
        corpus_position: str = "",
    ) -> ShardEntry:
        """Publish the shard of ``unit``, then its receipt; returns what the receipt says.

        A finished unit is left as it is and ``rows`` is not touched. A unit may have no rows.
        Raises ValueError naming row, column and position if a row breaks a rule.
        """
        existing = self._whole_or_discarded(unit)
        if existing is not None:
            return existing
        shard = encode_shard(rows, self.spec, unit)
        sha256 = shard.sha256
        entry = ShardEntry(
            unit=unit,
            file=layout.shard_file(unit, sha256),
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
        )
        return self._publish(entry, shard)

    def discard_unit(self, unit: int) -> None:
        """Remove the receipt and every shard of ``unit``, so that it can be made again."""
        (self.path / layout.receipt_file(unit)).unlink(missing_ok=True)
        fsync_directory(self.path / layout.RECEIPTS)
        self._remove_shards(unit, keep=None)

    def has_complete_manifest(self) -> bool:
        """Whether readers may already open the cache."""
        try:
            return read_manifest(self.path).complete
        except (CorruptFileError, MissingFileError):
            return False

    def publish_manifest(self, num_tokens_requested: int, complete: bool) -> Manifest:
        """Publish the table of contents of all finished units."""
        while True:
            receipts = self._receipt_names()
            manifest = fold(
                self.spec,
                self.finished_units().values(),
                self._teacher_receipt(),
                num_tokens_requested=num_tokens_requested,
                complete=complete,
            )
            publish_bytes(self.path / layout.MANIFEST, manifest.to_bytes())
            # Another process may have finished a unit, and published, while this one was folding.
            if self._receipt_names() == receipts:
                return manifest

    def _publish(self, entry: ShardEntry, shard: EncodedShard) -> ShardEntry:
        data = receipt_bytes(Receipt(entry=entry, blocks=shard.blocks), self.spec)
        winner: ShardEntry | None = None
        while winner is None:
            with atomic_file(self.path / entry.file) as sink:
                sink.write(memoryview(shard.data))
            if publish_exclusive(self.path / layout.receipt_file(entry.unit), data):
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
        path = self.path / layout.receipt_file(unit)
        if path.exists() and self._whole_receipt(unit) is None:
            path.unlink(missing_ok=True)
        return None

    def _whole_receipt(self, unit: int) -> Receipt | None:
        try:
            receipt = read_receipt(self.path, unit, self.spec, None)
            found = (self.path / receipt.entry.file).stat().st_size
        except (CorruptFileError, MissingFileError, FileNotFoundError):
            return None
        return receipt if found == receipt.entry.num_bytes else None

    def _receipt_names(self) -> set[str]:
        return {path.name for path in (self.path / layout.RECEIPTS).glob("*.json")}

    def _teacher_receipt(self) -> TeacherReceipt | None:
        """The receipt of ``teacher/`` if it and all its files are there in their full size."""
        try:
            receipt = read_teacher_receipt(self.path, self.spec, None)
            for name, (num_bytes, _) in receipt.files.items():
                if (self.path / layout.TEACHER / name).stat().st_size != num_bytes:
                    return None
        except (CorruptFileError, MissingFileError, FileNotFoundError, NotADirectoryError):
            return None
        return receipt

    def _remove_shards(self, unit: int, *, keep: str | None) -> None:
        """Remove what killed or slower processes left of ``unit``."""
        for path in (self.path / layout.SHARDS).glob(f"{unit:05d}-*.arrow"):
            if keep is None or path != self.path / keep:
                path.unlink(missing_ok=True)


def _found_spec(path: Path) -> CacheSpec | None:
    """The spec of the cache at ``path``; None where there is nothing yet."""
    if not path.exists():
        return None
    # Listed before the look for a spec: another process that creates the cache writes that first.
    names = [p.name for p in path.iterdir() if not is_temporary(p)] if path.is_dir() else []
    if (path / layout.SPEC).exists():
        return read_spec(path / layout.SPEC)
    if (path / layout.MANIFEST).exists():
        return read_manifest(path).spec
    if names or not path.is_dir():
        found = f"holds {', '.join(sorted(names)[:5])}" if names else "is a file"
        raise ForeignDirectoryError(
            f"{path}: not a cache: expected {layout.SPEC} or an empty directory, but it {found}. "
            "Choose another --out; nothing was changed."
        )
    return None


def _require_same_spec(path: Path, expected: CacheSpec, found: CacheSpec) -> None:
    fields = differences(expected, found)
    if fields:
        raise SpecMismatchError(
            f"{path}: this cache was made from another recipe, teacher or corpus:\n  "
            + "\n  ".join(fields)
            + "\nChoose another --out, or let the recipe match it; nothing was changed."
        )


def _describe(directory: Path) -> dict[str, tuple[int, str]]:
    """Size and SHA-256 of every file in ``directory``, by its name relative to it."""
    files = {}
    for path in sorted(directory.rglob("*")):
        name = path.relative_to(directory).as_posix()
        if path.is_symlink():
            raise ValueError(f"{name}: a cache holds no symbolic links")
        if path.is_file():
            layout.require_attachment_name(name)
            with path.open("rb") as source:
                digest = hashlib.file_digest(source, "sha256").hexdigest()
            files[name] = (path.stat().st_size, digest)
    return files
