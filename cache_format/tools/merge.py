"""Put caches of one spec together, such as disjoint ranges of units made on different machines.

In: opened caches, complete or not, none of which is changed. Out: one cache with all their units.
Every file is compared with its checksum on the way; shards become hard links where the file system
has them, since nothing in a cache is ever changed in place. A merge that was killed goes on where
it was: units that are there are kept.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from threading import Lock

from cache_format.errors import (
    CacheError,
    CorruptFileError,
    MissingFileError,
    SpecMismatchError,
)
from cache_format.metadata import layout
from cache_format.metadata.completeness import is_complete
from cache_format.metadata.manifest import ShardEntry, require_agreement
from cache_format.metadata.receipt import Receipt, read_receipt, receipt_from_bytes
from cache_format.metadata.recipe_file import read_recipe
from cache_format.metadata.spec import differences
from cache_format.opening import open_cache
from cache_format.reader import Cache
from cache_format.storage.base import Storage, checked_chunks, read_file
from cache_format.storage.open import storage_at
from cache_format.threads import in_threads
from cache_format.tools.checked_shard import checked_shard
from cache_format.tools.inside import require_outside
from cache_format.writer import CacheWriter


@dataclass(frozen=True, kw_only=True)
class Merged:
    """What came of a merge."""

    num_units: int
    num_tokens: int
    num_tokens_requested: int
    """The largest budget of any input, in positions."""
    is_complete: bool
    differing_units: tuple[int, ...]
    """Units that two inputs hold in different bytes; the first one's was taken."""
    damaged_units: tuple[int, ...] = ()
    """Units that the target held damaged; unless an input has them too, they are missing now."""
    missing_units: tuple[range, ...]
    """Gaps before the last unit."""


class _Found:
    """A unit and the cache that it is taken from."""

    def __init__(self, entry: ShardEntry, cache: Cache) -> None:
        self.entry, self.cache = entry, cache


def merge(
    inputs: Sequence[Cache],
    out: Path | str,
    *,
    num_threads: int = 1,
    report: Callable[[int, int], None] = lambda done, total: None,
) -> Merged:
    """Make the cache at ``out`` hold every unit of ``inputs``, and those that it holds already.

    A unit that several hold is that of ``out``, else of the first. The result is complete if
    no unit is missing and either the largest budget of any input is reached, or an input shows that
    the corpus has ended. ``report`` is told the bytes done and in all.

    Raises ForeignDirectoryError if ``out`` lies inside of an input, SpecMismatchError naming the
    fields in which two specs differ and CacheError if the teacher's files do, all before anything
    is written; CorruptFileError or MissingFileError if an input is damaged, with what was merged by
    then kept.
    """
    for cache in inputs:
        if not _is_same_place(storage_at(out), cache.storage):
            require_outside(out, cache.storage)
    there = _already(out)
    caches = [*there, *inputs]
    _require_same_spec(caches)
    teacher = _teacher_of(caches)
    # Not what ``out`` has of them: a merge that was killed early has not written it.
    writer = CacheWriter.create_or_open(out, caches[0].spec, inputs[0].shared)
    others = [cache for cache in inputs if not _is_same_place(cache.storage, writer.storage)]
    begun = layout.receipt_units(writer.storage)  # first: other processes may finish units
    finished = writer.finished_units()
    damaged = [unit for unit in begun if unit not in finished]
    units, differing = _units_of(finished, others)
    if teacher is not None:
        writer.write_attachments(lambda directory: _transfer_teacher(teacher, directory))
    _transfer_recipe(inputs, writer)
    _transfer_units(units, writer, num_threads, report)

    entries = writer.finished_units()
    requested = max(cache.manifest.num_tokens_requested for cache in caches)
    ends = _ends_of_corpus(caches)
    complete = is_complete(entries, requested, lambda unit: all(unit < end for end in ends))
    writer.publish_manifest(requested, complete)
    return Merged(
        num_units=len(entries),
        num_tokens=sum(entry.num_tokens for entry in entries.values()),
        num_tokens_requested=requested,
        is_complete=complete,
        differing_units=differing,
        damaged_units=tuple(damaged),
        missing_units=_gaps(sorted(entries)),
    )


def _already(out: Path | str) -> list[Cache]:
    """The cache that is at ``out``, if there is one."""
    storage = storage_at(out)
    if storage.size(layout.SPEC) is None and storage.size(layout.MANIFEST) is None:
        return []
    return [open_cache(out, allow_incomplete=True)]


def _require_same_spec(caches: Sequence[Cache]) -> None:
    first = caches[0]
    for cache in caches[1:]:
        fields = differences(first.spec, cache.spec)
        if fields:
            raise SpecMismatchError(
                f"{cache.path}: made from another recipe, teacher or corpus than {first.path}:\n  "
                + "\n  ".join(fields)
                + "\nOnly caches of one spec can be merged; nothing was changed."
            )


def _teacher_of(caches: Sequence[Cache]) -> Cache | None:
    """The first cache that has the teacher's files; those of the others must be the same."""
    owners = [cache for cache in caches if cache.manifest.teacher_receipt_sha256 is not None]
    for other in owners[1:]:
        ours, theirs = owners[0].attachments(), other.attachments()
        names = sorted(n for n in ours.keys() | theirs.keys() if ours.get(n) != theirs.get(n))
        if names:
            raise CacheError(
                f"{other.storage.locate(layout.TEACHER)}: not the files that are in "
                f"{owners[0].storage.locate(layout.TEACHER)}: {', '.join(names)}. They were "
                "written by other versions. Delete "
                f"{other.storage.locate(layout.TEACHER_RECEIPT)} to merge without "
                "them; nothing was changed."
            )
    return owners[0] if owners else None


def _is_same_place(one: Storage, other: Storage) -> bool:
    """Whether a cache is the target itself: what is damaged there, it cannot be mended from."""
    a, b = one.root, other.root
    return a.resolve() == b.resolve() if isinstance(a, Path) and isinstance(b, Path) else a == b


def _units_of(
    finished: dict[int, ShardEntry], inputs: Sequence[Cache]
) -> tuple[list[_Found], tuple[int, ...]]:
    """What to transfer, each unit where it is found first; and units of which there are two."""
    found: dict[int, _Found] = {}
    differing = set()
    for cache in inputs:
        for entry in _entries_of(cache):
            if entry.unit not in finished:
                found.setdefault(entry.unit, _Found(entry, cache))
            first = finished.get(entry.unit) or found[entry.unit].entry
            if first.sha256 != entry.sha256:
                differing.add(entry.unit)
    return [found[unit] for unit in sorted(found)], tuple(sorted(differing))


def _entries_of(cache: Cache) -> list[ShardEntry]:
    """The finished units of a cache, also those that were finished after its manifest."""
    entries = {entry.unit: entry for entry in cache.manifest.shards}
    for unit in layout.receipt_units(cache.storage):
        if unit not in entries:
            entries[unit] = read_receipt(cache.storage, unit, cache.spec, None).entry
    return list(entries.values())


def _transfer_teacher(cache: Cache, directory: Path) -> None:
    for name, expected in cache.attachments().items():
        (directory / name).parent.mkdir(parents=True, exist_ok=True)
        with (directory / name).open("xb") as sink:
            file = f"{layout.TEACHER}/{name}"
            sink.writelines(checked_chunks(cache.storage, file, expected, layout.TEACHER_STEP))


def _transfer_recipe(inputs: Sequence[Cache], writer: CacheWriter) -> None:
    """The first recipe there is, unless the target has one."""
    for storage in (writer.storage, *(cache.storage for cache in inputs)):
        if storage.size(layout.RECIPE) is not None:
            recipe = read_recipe(storage, writer.spec.cache_id, layout.RECIPE_STEP)
            writer.storage.publish_exclusive(layout.RECIPE, recipe)
            return


def _transfer_units(
    units: Sequence[_Found],
    writer: CacheWriter,
    num_threads: int,
    report: Callable[[int, int], None],
) -> None:
    total = sum(found.entry.num_bytes for found in units)
    done = 0
    lock = Lock()

    def advance(num_bytes: int) -> None:
        nonlocal done
        with lock:
            done += num_bytes
            report(done, total)

    def transfer(found: _Found) -> None:
        with _naming_unit(found, writer.storage):
            copy(found)

    def copy(found: _Found) -> None:
        entry = found.entry
        step = layout.unit_step(entry.unit, entry.file)
        name = layout.receipt_file(entry.unit)
        storage = found.cache.storage
        data, path = read_file(storage, name, step), storage.locate(name)
        receipt = receipt_from_bytes(data, path, entry.unit, writer.spec, entry.receipt_sha256)
        require_agreement(storage, entry, receipt)
        _transfer_shard(storage, receipt, writer, advance)
        writer.adopt_unit(entry, data)

    in_threads(transfer, units, num_threads)


@contextmanager
def _naming_unit(found: _Found, target: Storage) -> Iterator[None]:
    """Say of which unit and cache a damaged file is, and what became of the others."""
    try:
        yield
    except (CorruptFileError, MissingFileError) as error:
        raise type(error)(
            f"{found.cache.path}: unit {found.entry.unit} is damaged and was not merged: "
            f"{error.problem} Units merged so far are kept in {target.root}.",
            error.next_step,
        ) from error


def _transfer_shard(
    origin: Storage, receipt: Receipt, writer: CacheWriter, advance: Callable[[int], None]
) -> None:
    """Link the shard if that can be done, else copy it; its bytes are checked either way."""
    entry, storage = receipt.entry, writer.storage
    chunks = checked_shard(origin, receipt, writer.spec)
    storage.remove(entry.file)  # no receipt tells of it: a killed merge left it
    source, target = origin.locate(entry.file), storage.locate(entry.file)
    if isinstance(source, Path) and isinstance(target, Path) and _link(source, target):
        try:
            for chunk in chunks:
                advance(len(chunk))
        except BaseException:
            storage.remove(entry.file)
            raise
        storage.sync(layout.SHARDS)
        return
    with storage.publish_file(entry.file) as sink:
        for chunk in chunks:
            sink.write(chunk)
            advance(len(chunk))


def _link(source: Path, target: Path) -> bool:
    try:
        os.link(os.path.realpath(source), target)
    except OSError:  # another file system, or one without hard links, or too many of them
        return False
    return True


def _ends_of_corpus(caches: Sequence[Cache]) -> list[int]:
    """How many units the corpus has, as far as ``caches`` tell."""
    manifests = (cache.manifest for cache in caches)
    return [
        manifest.shards[-1].unit + 1
        for manifest in manifests
        if manifest.is_whole_corpus and manifest.shards
    ]


def _gaps(units: Sequence[int]) -> tuple[range, ...]:
    """The runs of numbers from 0 to the last unit that are not among ``units``, which rise."""
    begins = [0, *(unit + 1 for unit in units)]
    return tuple(
        range(begin, end) for begin, end in zip(begins, units, strict=False) if begin < end
    )
