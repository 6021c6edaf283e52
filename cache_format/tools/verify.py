"""Read every byte of a cache and compare it with its checksum.

In: an opened cache. Out: a list of problems, each naming a file and what to do about it.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Lock
from typing import NamedTuple

from cache_format.errors import CacheError, CorruptFileError, NextStep
from cache_format.metadata import layout
from cache_format.metadata.manifest import read_manifest, read_spec, require_agreement
from cache_format.metadata.receipt import Receipt, read_receipt
from cache_format.metadata.recipe_file import read_recipe
from cache_format.reader import Cache
from cache_format.storage.base import check_file, checked_chunks
from cache_format.tables.shared_files import files_of
from cache_format.threads import in_threads
from cache_format.tools.checked_shard import of_this_cache
from cache_format.tools.foreign_files import foreign_files
from cache_format.tools.verified_files import VerifiedFiles


class Problem(NamedTuple):
    """Something that is wrong with a cache."""

    path: Path | str
    """The file, as ``Storage.locate`` calls it."""
    message: str
    """What is wrong, and what to do about it."""
    next_step: NextStep = NextStep("")
    """The part of ``message`` that says what to do."""
    is_damage: bool = True
    """False of a file that does not belong to the cache, and that nothing in it uses."""


def verify(
    cache: Cache,
    report: Callable[[int, int], None] | None = None,
    *,
    num_threads: int = 1,
    record: Path | None = None,
) -> list[Problem]:
    """Every checksum of ``cache``, and files that do not belong; the empty list is good news.

    Files that do not belong are no damage (``Problem.is_damage``). ``report`` receives the bytes
    read so far and in all. With ``record``, a file outside of the cache, a verification that is
    interrupted goes on where it was when it is called again.
    """
    problems: list[Problem] = []
    _check_roots(cache, problems)
    files = [*_shard_files(cache, problems), *_teacher_files(cache, problems)]
    with VerifiedFiles(record) as verified:
        problems += _check_files(cache, files, report, num_threads, verified)
    with _collecting(problems, cache.storage.locate("")):
        problems += _foreign(cache, {file.name for file in files})
    return problems


def _check_files(
    cache: Cache,
    files: list["_File"],
    report: Callable[[int, int], None] | None,
    num_threads: int,
    verified: VerifiedFiles,
) -> list[Problem]:
    """The problems of ``files``, in their order; those in ``verified`` are not read again."""
    storage, spec = cache.storage, cache.spec
    total = sum(file.num_bytes for file in files)
    done = 0
    lock = Lock()
    problems: dict[str, list[Problem]] = {}

    def advance(num_bytes: int) -> None:
        nonlocal done
        with lock:
            done += num_bytes
            if report is not None:
                report(done, total)

    def check(file: _File) -> None:
        left = file.num_bytes
        path = storage.locate(file.name)
        with _collecting(problems.setdefault(file.name, []), path):
            expected = (file.num_bytes, file.sha256)
            before = storage.identity(file.name)
            if before is None or not verified.has(path, file.sha256, before):
                chunks = checked_chunks(storage, file.name, expected, file.next_step)
                if file.receipt is not None:
                    chunks = of_this_cache(chunks, file.receipt, spec, path)
                for chunk in chunks:
                    left -= len(chunk)
                    advance(len(chunk))
                if before is not None:
                    verified.add(path, file.sha256, before)
        advance(left)

    in_threads(check, files, num_threads)
    return [problem for file in files for problem in problems[file.name]]


class _File(NamedTuple):
    name: str
    num_bytes: int
    sha256: str
    next_step: str
    receipt: Receipt | None = None
    """Of a shard, if it can be read."""


@contextmanager
def _collecting(problems: list[Problem], path: Path | str) -> Iterator[None]:
    try:
        yield
    except CacheError as error:
        problems.append(Problem(path, str(error), error.next_step))
    except OSError as error:
        problems.append(Problem(path, str(error)))


def _check_roots(cache: Cache, problems: list[Problem]) -> None:
    """The manifest as it is now, the spec that a writer would go by, and the files it names."""
    storage = cache.storage
    with _collecting(problems, storage.locate(layout.MANIFEST)):
        if storage.size(layout.MANIFEST) is not None:
            read_manifest(storage)
    path = storage.locate(layout.SPEC)
    with _collecting(problems, path):
        found = read_spec(storage).cache_id
        if found != cache.cache_id:
            raise CorruptFileError(
                f"{path}: of another cache: expected cache_id {cache.cache_id}, found {found}.",
                layout.make_again("Delete it and", "it is written again."),
            )
    for name, file in files_of(cache.spec).items():
        with _collecting(problems, storage.locate(name)):
            check_file(storage, name, (file.num_bytes, file.sha256), file.next_step)
    with _collecting(problems, storage.locate(layout.RECIPE)):
        if storage.size(layout.RECIPE) is not None:
            read_recipe(storage, cache.cache_id, layout.RECIPE_STEP)


def _shard_files(cache: Cache, problems: list[Problem]) -> list[_File]:
    """Every shard that the manifest names, or that was finished after it, its receipt checked."""
    entries = {entry.unit: entry for entry in cache.manifest.shards}
    receipts: dict[int, Receipt] = {}
    units = set(entries)
    with _collecting(problems, cache.storage.locate(layout.RECEIPTS)):
        units.update(layout.receipt_units(cache.storage))
    for unit in sorted(units):
        expected = entries[unit].receipt_sha256 if unit in entries else None
        with _collecting(problems, cache.storage.locate(layout.receipt_file(unit))):
            receipt = read_receipt(cache.storage, unit, cache.spec, expected)
            said, entries[unit] = entries.get(unit, receipt.entry), receipt.entry
            require_agreement(cache.storage, said, receipt)
            receipts[unit] = receipt
    return [
        _File(
            entry.file,
            entry.num_bytes,
            entry.sha256,
            layout.unit_step(entry.unit, entry.file),
            receipts.get(entry.unit),
        )
        for entry in entries.values()
    ]


def _teacher_files(cache: Cache, problems: list[Problem]) -> list[_File]:
    with _collecting(problems, cache.storage.locate(layout.TEACHER_RECEIPT)):
        return [
            _File(f"{layout.TEACHER}/{name}", num_bytes, sha256, layout.TEACHER_STEP)
            for name, (num_bytes, sha256) in cache.attachments().items()
        ]
    return []


def _foreign(cache: Cache, known: set[str]) -> list[Problem]:
    found = foreign_files(cache.storage, known | files_of(cache.spec).keys())
    return [Problem(path, message, is_damage=False) for path, message in found]
