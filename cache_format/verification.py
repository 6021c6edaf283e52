"""Read every byte of a cache and compare it with its checksum.

In: an opened cache. Out: a list of problems, each naming a file and what to do about it. Called
by ``Cache.verify``, and file by file by the reader.
"""

import hashlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from cache_format import layout
from cache_format.atomic import is_temporary
from cache_format.errors import CacheError, CorruptFileError, MissingFileError
from cache_format.manifest import read_manifest, read_spec
from cache_format.receipt import read_receipt

if TYPE_CHECKING:
    from cache_format.reader import Cache

_CHUNK_BYTES = 1 << 22


class Problem(NamedTuple):
    """Something that is wrong with a cache."""

    path: Path
    message: str


def check_file(
    path: Path,
    expected: tuple[int, str],
    next_step: str,
    advance: Callable[[int], None] = lambda num_bytes: None,
) -> None:
    """Raise unless the file has its size and SHA-256; ``advance`` is told of bytes as they come."""
    num_bytes, sha256 = expected
    digest = hashlib.sha256()
    try:
        with path.open("rb") as source:
            found = path.stat().st_size
            if found != num_bytes:
                raise CorruptFileError(
                    f"{path}: damaged: expected {num_bytes} bytes, found {found}. {next_step}"
                )
            while chunk := source.read(_CHUNK_BYTES):
                digest.update(chunk)
                advance(len(chunk))
    except (FileNotFoundError, NotADirectoryError) as error:
        raise MissingFileError(f"{path}: missing. {next_step}") from error
    if digest.hexdigest() != sha256:
        raise CorruptFileError(
            f"{path}: damaged: expected SHA-256 {sha256}, found {digest.hexdigest()}. {next_step}"
        )


def verify(cache: "Cache", report: Callable[[int, int], None] | None) -> list[Problem]:
    """See ``Cache.verify``."""
    problems: list[Problem] = []
    _check_roots(cache, problems)
    files = [*_shard_files(cache, problems), *_teacher_files(cache, problems)]
    total = sum(file.num_bytes for file in files)
    done = 0

    def advance(num_bytes: int) -> None:
        nonlocal done
        done += num_bytes
        if report is not None:
            report(done, total)

    for file in files:
        end = done + file.num_bytes
        with _collecting(problems, file.path):
            check_file(file.path, (file.num_bytes, file.sha256), file.next_step, advance)
        if done != end:
            advance(end - done)
    return problems + _orphans(cache, {file.path for file in files})


class _File(NamedTuple):
    path: Path
    num_bytes: int
    sha256: str
    next_step: str


@contextmanager
def _collecting(problems: list[Problem], path: Path) -> Iterator[None]:
    try:
        yield
    except (CacheError, OSError) as error:
        problems.append(Problem(path, str(error)))


def _check_roots(cache: "Cache", problems: list[Problem]) -> None:
    """The manifest as it is now, and the spec that a writer would go by."""
    path = cache.path / layout.MANIFEST
    if path.exists():
        with _collecting(problems, path):
            read_manifest(cache.path)
    path = cache.path / layout.SPEC
    if path.exists():
        with _collecting(problems, path):
            found = read_spec(path).cache_id
            if found != cache.cache_id:
                raise CorruptFileError(
                    f"{path}: of another cache: expected cache_id {cache.cache_id}, found {found}. "
                    "Delete it: the next run of `pipeline cache-teacher` writes it again."
                )


def _shard_files(cache: "Cache", problems: list[Problem]) -> list[_File]:
    """Every shard that the manifest names, or that was finished after it, its receipt checked."""
    entries = {entry.unit: entry for entry in cache.manifest.shards}
    for unit in sorted(entries.keys() | set(layout.receipt_units(cache.path))):
        expected = entries[unit].receipt_sha256 if unit in entries else None
        with _collecting(problems, cache.path / layout.receipt_file(unit)):
            receipt = read_receipt(cache.path, unit, cache.spec, expected)
            entries[unit] = receipt.entry
    return [
        _File(
            cache.path / entry.file,
            entry.num_bytes,
            entry.sha256,
            layout.shard_step(entry.unit, entry.file),
        )
        for entry in entries.values()
    ]


def _teacher_files(cache: "Cache", problems: list[Problem]) -> list[_File]:
    with _collecting(problems, cache.path / layout.TEACHER_RECEIPT):
        return [
            _File(cache.path / layout.TEACHER / name, num_bytes, sha256, layout.TEACHER_STEP)
            for name, (num_bytes, sha256) in cache.attachments().items()
        ]
    return []


def _orphans(cache: "Cache", known: set[Path]) -> list[Problem]:
    """Files in the cache's directories that no receipt names, other than half-written ones.

    Without a readable receipt of ``teacher/`` nothing can be said of the files in it.
    """
    knows_teacher = any(path.is_relative_to(cache.path / layout.TEACHER) for path in known)
    return [
        Problem(
            path,
            f"{path}: nothing refers to it. If no `pipeline cache-teacher` is at work on this "
            "cache, a killed one left it: delete it.",
        )
        for directory in (layout.SHARDS, *((layout.TEACHER,) if knows_teacher else ()))
        for path in sorted((cache.path / directory).rglob("*"))
        if path.is_file() and path not in known and not is_temporary(path)
    ]
