"""A whole cache as one stream, a ``.tar.zst``, and back.

In: an opened cache, or the stream. Out: the stream, or the cache, byte by byte the same.
``tar --zstd -xf`` opens such an archive too, but checks less.

**Order.** The manifest comes first: it tells the size and SHA-256 of all that follows, so that
``unpack`` knows before every file which one must come now, and refuses anything else. Then
``spec.json``, the files that the spec names, ``recipe.toml`` if there is one, the teacher's receipt
and files, and for each unit its receipt and its shard. So a unit can be checked and published as
soon as it has arrived, the manifest last of all: an ``unpack`` that was killed leaves a cache
begun, and the next one goes on.

**Restarting.** The bytes are a function of the cache, whatever the number of threads. Yet a
``pack`` that was killed starts again: before what is there could be kept, it would have to be read,
decompressed and hashed, which costs what packing costs, as shards hardly compress any further.
For the same reason the level is 1: it takes what there is to take in the teacher's files.
"""

import hashlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from cache_format.errors import (
    Action,
    CorruptArchiveError,
    CorruptFileError,
    ForeignDirectoryError,
    NextStep,
)
from cache_format.metadata import layout, sealed_json
from cache_format.metadata.manifest import Manifest, require_agreement, spec_bytes
from cache_format.metadata.receipt import (
    TeacherReceipt,
    parse,
    read_teacher_receipt,
    receipt_from_bytes,
)
from cache_format.metadata.recipe_file import MAX_BYTES as MAX_RECIPE_BYTES
from cache_format.metadata.recipe_file import read_recipe
from cache_format.reader import Cache
from cache_format.storage.base import checked_chunks, read_file
from cache_format.tables.shared_files import SharedFiles, files_of, shared_from_bytes
from cache_format.tools.archive_stream import ArchivedFile, ArchiveReader, write_archive
from cache_format.tools.checked_shard import checked_shard, of_this_cache
from cache_format.writer import CacheWriter

Report = Callable[[int, int], None]
"""Told the bytes of shards and of the teacher's files that are done, and of all of them."""

_MAX_SEALED_BYTES = 1 << 26  # of a file that is held in memory


def pack(cache: Cache, sink: BinaryIO, *, num_threads: int, report: Report) -> None:
    """Write ``cache`` into ``sink``, every file compared with its checksum on the way.

    Raises CacheError naming the file if one is missing or damaged; what was written by then is no
    archive. Units that were finished after the cache was opened are left out.
    """
    write_archive(sink, _files_of(cache, report), num_threads)


def unpack(source: BinaryIO, target: Path | str, *, name: str, report: Report) -> Manifest:
    """Make the cache at ``target`` what the archive ``source`` holds, keeping what is there.

    ``target`` is a directory or URL with nothing in it, or a cache with units of the archive and no
    others. Raises SpecMismatchError or ForeignDirectoryError, with nothing changed, otherwise; and
    CorruptArchiveError, which calls the archive ``name``, where it is not what ``pack`` wrote: what
    had arrived whole by then stays, and is kept the next time.
    """
    try:
        archive = _Unpacking(source, target, name, report)
    except CorruptArchiveError as error:  # nothing is written before the manifest and the ranks
        raise CorruptArchiveError(
            f"{error}. It is not a packed cache, or was truncated before the first shard; {target} "
            "was not changed.",
            NextStep("Use the complete file that was written by packing a cache.", Action.PACK),
        ) from error
    try:
        archive.take_recipe()
        archive.take_teacher()
        archive.take_units()
        return archive.finish()
    except CorruptArchiveError as error:
        raise CorruptArchiveError(
            f"{error}. Files unpacked so far are kept in {target}.",
            NextStep(
                "Get the complete archive and unpack it again: it resumes from there.",
                Action.RUN_AGAIN,
            ),
        ) from error


def _files_of(cache: Cache, report: Report) -> Iterator[ArchivedFile]:
    """Everything that belongs to the cache, in the order of the archive."""
    manifest, attachments = cache.manifest, cache.attachments()
    progress = _Progress(manifest, [size for size, _ in attachments.values()], report)
    yield _small(layout.MANIFEST, manifest.to_bytes(), _MAX_SEALED_BYTES)
    yield _small(layout.SPEC, spec_bytes(manifest.spec), _MAX_SEALED_BYTES)
    for name, data in cache.shared.to_bytes().items():
        yield ArchivedFile(name, len(data), [data])
    if cache.storage.size(layout.RECIPE) is not None:
        recipe = read_recipe(cache.storage, cache.cache_id, layout.RECIPE_STEP)
        yield _small(layout.RECIPE, recipe, MAX_RECIPE_BYTES)
    if manifest.teacher_receipt_sha256 is not None:
        step = layout.TEACHER_STEP
        yield _receipt(cache, layout.TEACHER_RECEIPT, manifest.teacher_receipt_sha256, step)
        for file, expected in attachments.items():
            name = f"{layout.TEACHER}/{file}"
            chunks = checked_chunks(cache.storage, name, expected, step)
            yield ArchivedFile(name, expected[0], progress.counted(chunks))
    for entry in manifest.shards:
        step = layout.unit_step(entry.unit, entry.file)
        name = layout.receipt_file(entry.unit)
        data, path = read_file(cache.storage, name, step), cache.storage.locate(name)
        receipt = receipt_from_bytes(data, path, entry.unit, manifest.spec, entry.receipt_sha256)
        require_agreement(cache.storage, entry, receipt)
        yield _small(name, data, _MAX_SEALED_BYTES)
        chunks = checked_shard(cache.storage, receipt, manifest.spec)
        yield ArchivedFile(entry.file, entry.num_bytes, progress.counted(chunks))


def _receipt(cache: Cache, name: str, sha256: str, step: str) -> ArchivedFile:
    data = read_file(cache.storage, name, step)
    if hashlib.sha256(data).hexdigest() != sha256:
        raise CorruptFileError(
            f"{cache.storage.locate(name)}: not the file that the manifest names "
            f"(SHA-256 {sha256}).",
            step,
        )
    return _small(name, data, _MAX_SEALED_BYTES)


def _small(name: str, data: bytes, at_most: int) -> ArchivedFile:
    if len(data) > at_most:
        raise ValueError(f"{name}: cannot be packed: {len(data)} bytes are more than {at_most}")
    return ArchivedFile(name, len(data), [data])


class _Unpacking:
    """An archive that is being unpacked: begun, its parts taken in their order, finished."""

    def __init__(self, source: BinaryIO, target: Path | str, name: str, report: Report) -> None:
        self._name, self._target, self._report = name, target, report
        self._archive = ArchiveReader(source, name)
        self._manifest = self._read_manifest()
        self._writer = CacheWriter.create_or_open(target, self._manifest.spec, self._read_shared())
        self._finished = self._writer.finished_units()
        self._require_nothing_else()
        self._recipe: bytes | None = None
        self._progress = _Progress(self._manifest, [], report)

    def take_recipe(self) -> None:
        """The recipe, if there is one."""
        if self._archive.next_name() == layout.RECIPE:
            self._recipe = self._archive.read(layout.RECIPE, MAX_RECIPE_BYTES)

    def take_teacher(self) -> None:
        """The teacher's receipt and files, if there are any."""
        sha256 = self._manifest.teacher_receipt_sha256
        if sha256 is None:
            return
        files = self._read_teacher_receipt(sha256).files
        sizes = [size for size, _ in files.values()]
        self._progress = _Progress(self._manifest, sizes, self._report)
        is_taken = False

        def build(directory: Path) -> None:
            nonlocal is_taken
            is_taken = True
            for file, expected in files.items():
                path = directory / file
                with self._naming_impossible(file):
                    path.parent.mkdir(parents=True, exist_ok=True)
                    sink = path.open("xb")
                with sink:
                    sink.writelines(self._checked(f"{layout.TEACHER}/{file}", expected))

        self._writer.write_attachments(build)
        if not is_taken:
            for file, (size, _) in files.items():
                self._pass_over(f"{layout.TEACHER}/{file}", size)
        found = read_teacher_receipt(self._writer.storage, self._manifest.spec, None).receipt_sha256
        if found != sha256:
            raise self._foreign("other files of the teacher")

    def take_units(self) -> None:
        """Each unit, published when its shard has arrived and has been checked."""
        for entry in self._manifest.shards:
            name, expected = layout.receipt_file(entry.unit), (entry.num_bytes, entry.sha256)
            data = self._read_sealed(name, entry.receipt_sha256)
            if entry.unit in self._finished:
                self._pass_over(entry.file, entry.num_bytes)
                continue
            spec = self._manifest.spec
            with self._naming_damage(name):
                receipt = receipt_from_bytes(data, name, entry.unit, spec, None)
            chunks = of_this_cache(self._checked(entry.file, expected), receipt, spec, entry.file)
            with (
                self._naming_damage(entry.file),
                self._writer.storage.publish_file(entry.file) as sink,
            ):
                sink.writelines(chunks)
            if self._writer.adopt_unit(entry, data).receipt_sha256 != entry.receipt_sha256:
                raise self._foreign(f"another unit {entry.unit}")

    def finish(self) -> Manifest:
        """Nothing may follow; now the cache is what the archive's manifest says."""
        self._archive.end()
        if self._recipe is not None:  # only now its bytes are checked, by the frame's checksum
            self._writer.storage.publish(layout.RECIPE, self._recipe)
        manifest = self._manifest
        return self._writer.publish_manifest(manifest.num_tokens_requested, manifest.complete)

    def _read_manifest(self) -> Manifest:
        data = self._archive.read(layout.MANIFEST, _MAX_SEALED_BYTES)
        with self._naming_damage(layout.MANIFEST):
            manifest = Manifest.from_bytes(data, Path(layout.MANIFEST))
        data = self._archive.read(layout.SPEC, _MAX_SEALED_BYTES)
        with self._naming_damage(layout.SPEC):
            spec = sealed_json.unseal(data, Path(layout.SPEC), "")
        if spec.get("cache_id") != manifest.cache_id:
            raise self._corrupt(layout.SPEC, "is of another cache than the manifest")
        return manifest

    def _read_shared(self) -> SharedFiles:
        spec = self._manifest.spec
        data = {
            name: self._read_sealed(name, file.sha256, file.num_bytes)
            for name, file in files_of(spec).items()
        }
        try:
            return shared_from_bytes(data, spec)
        except ValueError as error:
            raise CorruptArchiveError(f"{self._name}: {error}") from error

    def _read_teacher_receipt(self, sha256: str) -> TeacherReceipt:
        name = layout.TEACHER_RECEIPT
        data = self._read_sealed(name, sha256)
        with self._naming_damage(name):
            fields = sealed_json.unseal(data, Path(name), "") | {"receipt_sha256": sha256}
            receipt: TeacherReceipt = parse(TeacherReceipt, fields, Path(name), "")
        return receipt

    def _read_sealed(self, name: str, sha256: str, at_most: int = _MAX_SEALED_BYTES) -> bytes:
        data = self._archive.read(name, at_most)
        if hashlib.sha256(data).hexdigest() != sha256:
            raise self._corrupt(name, "not the file that the manifest names")
        return data

    def _checked(self, name: str, expected: tuple[int, str]) -> Iterator[bytes]:
        """The content of the file that comes next; raises after the last piece if it is damaged."""
        num_bytes, sha256 = expected
        digest = hashlib.sha256()
        for chunk in self._progress.counted(self._archive.chunks(name, num_bytes)):
            digest.update(chunk)
            yield chunk
        if digest.hexdigest() != sha256:
            raise self._corrupt(name, f"expected SHA-256 {sha256}, found {digest.hexdigest()}")

    def _pass_over(self, name: str, num_bytes: int) -> None:
        for _ in self._progress.counted(self._archive.chunks(name, num_bytes)):
            pass

    def _require_nothing_else(self) -> None:
        """Raise if the target holds a unit that is not the archive's: it would get lost in it."""
        wanted = {entry.unit: entry.receipt_sha256 for entry in self._manifest.shards}
        for unit, entry in self._finished.items():
            if wanted.get(unit) != entry.receipt_sha256:
                raise self._foreign(f"{'another' if unit in wanted else 'a'} unit {unit}")

    def _foreign(self, what: str) -> ForeignDirectoryError:
        return ForeignDirectoryError(
            f"{self._target}: has {what}, which {self._name} does not hold.",
            NextStep("Unpack into another directory, then merge the two.", Action.MERGE),
        )

    def _corrupt(self, file: str, what: str) -> CorruptArchiveError:
        return CorruptArchiveError(f"{self._name}: {file}: {what}")

    @contextmanager
    def _naming_damage(self, file: str) -> Iterator[None]:
        try:
            yield
        except CorruptFileError as error:
            raise self._corrupt(file, f"damaged: {error.problem}") from error

    @contextmanager
    def _naming_impossible(self, file: str) -> Iterator[None]:
        """``a`` and ``A`` cannot both be files where case does not count."""
        try:
            yield
        except (FileExistsError, NotADirectoryError) as error:
            raise self._corrupt(file, "is in the way of another file") from error


class _Progress:
    """Tells ``report`` of the bytes that go by."""

    def __init__(self, manifest: Manifest, attachments: Iterable[int], report: Report) -> None:
        self._total = sum(entry.num_bytes for entry in manifest.shards) + sum(attachments)
        self._done = 0
        self._report = report

    def counted(self, chunks: Iterable[bytes]) -> Iterator[bytes]:
        for chunk in chunks:
            yield chunk
            self._done += len(chunk)
            self._report(self._done, self._total)
