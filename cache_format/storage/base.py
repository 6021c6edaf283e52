"""Where a cache lies: a directory of this machine, or a URL that fsspec can reach.

Everything that reads or writes a cache goes through ``Storage``. Names are relative to the cache,
with ``/`` between their parts; ``locate`` gives what messages call a file. A file is whole or
absent in either place: ``directory.py`` has the one, ``remote.py`` the other. Local caches never
import fsspec.
"""

import hashlib
import re
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Protocol, TypeVar

from cache_format.errors import CorruptFileError, MissingFileError

_URL = re.compile(r"[a-z][a-z0-9+.-]*://")
ABSENT = (FileNotFoundError, NotADirectoryError)
"""What is raised of a file that is not there."""

_T = TypeVar("_T")
_U = TypeVar("_U")


@dataclass(frozen=True, kw_only=True)
class LocalSpace:
    """Where copies of a remote cache's files are held, and how much room they have."""

    directory: Path | None = None
    """None: ``xlstm-distill`` in ``$XDG_CACHE_HOME`` or ``~/.cache``. Each cache has a directory
    of its own in it."""
    num_bytes: int = 20 << 30
    """The most that the copies of one cache's shards take; the teacher's files come on top."""

    def __post_init__(self) -> None:
        if self.num_bytes < 1:
            raise ValueError(f"local_bytes: must be 1 or more, found {self.num_bytes}")


class LocalFiles(Protocol):
    """A cache's shards and attachments as files of this machine, to be read at random."""

    @property
    def directory(self) -> Path:
        """Where they lie, by the same names as in the cache."""

    @property
    def max_bytes(self) -> int | None:
        """The most that copies of shards take; None where there are no copies."""

    def open(self, name: str, expected: tuple[int, str], next_step: str) -> int:
        """A descriptor of the file, which the caller closes; only some of it may be checked.

        ``expected`` is its size and SHA-256. Raises MissingFileError or CorruptFileError, which
        end with ``next_step``.
        """

    def path(self, name: str, expected: tuple[int, str], next_step: str) -> Path:
        """Where the file lies, after all of it has been compared with ``expected``."""

    def drop(self, name: str) -> bool:
        """Remove the copy of a file whose bytes are wrong; False where there are no copies."""


class Storage(Protocol):
    """A place that holds a cache, or will."""

    @property
    def root(self) -> Path | str:
        """The directory or URL."""

    @property
    def num_requests(self) -> int:
        """How many small files are best asked for at a time."""

    def locate(self, name: str) -> Path | str:
        """Path or URL of ``name``."""

    def read(self, name: str) -> bytes:
        """The whole file. Raises FileNotFoundError or NotADirectoryError where it is not there."""

    def chunks(self, name: str, num_bytes: int) -> Iterator[bytes]:
        """The first ``num_bytes`` of the file, or all that it has; raises as ``read`` does."""

    def size(self, name: str) -> int | None:
        """Bytes of the file; None where it is not there."""

    def identity(self, name: str) -> tuple[int, int, int] | None:
        """What changes whenever the file does; None where that cannot be told."""

    def has(self, name: str) -> bool:
        """Whether anything has this name, whole or not."""

    def list_names(self, directory: str) -> list[str]:
        """The names in ``directory``, sorted; none where it is not there. "" is the cache."""

    def files_below(self, directory: str) -> list[str]:
        """Every file in ``directory`` and below it, by its name; none where it is not there."""

    def prepare(self, directory: str) -> None:
        """Make ``directory``, and remove what killed writers left half-written in it."""

    def publish(self, name: str, data: bytes) -> None:
        """Make the file hold ``data``, in place of what it held before."""

    def publish_exclusive(self, name: str, data: bytes) -> bool:
        """Make the file hold ``data`` unless it is there; whether this call created it."""

    def publish_file(self, name: str) -> AbstractContextManager[BinaryIO]:
        """A file to write that gets its name when the block ends; not after an exception."""

    def publish_directory(self, name: str) -> AbstractContextManager[Path]:
        """A local directory to fill that becomes ``name`` when the block ends without exception.

        May raise FileExistsError where another process was faster.
        """

    def remove(self, name: str) -> None:
        """Remove the file, if it is there."""

    def remove_directory(self, name: str) -> None:
        """Remove the directory and all in it, if it is there."""

    def locked(self, directory: str) -> AbstractContextManager[None]:
        """One process at a time that works on ``directory``, where there are locks."""

    def sync(self, directory: str) -> None:
        """Make the names in ``directory`` outlive a power cut, those of other processes too."""

    def local_files(self, cache_id: str, space: LocalSpace) -> LocalFiles:
        """The cache's files as files of this machine; ``space`` is for copies, if there are any."""


def is_url(text: str | Path) -> bool:
    """Whether ``text`` is a URL and no path."""
    return isinstance(text, str) and _URL.match(text) is not None


def on_each(storage: Storage, work: Callable[[_T], _U], items: Iterable[_T]) -> list[_U]:
    """``work``'s results on ``items``, in their order; each may ask ``storage`` for small files."""
    if storage.num_requests == 1:
        return [work(item) for item in items]
    with ThreadPoolExecutor(storage.num_requests) as pool:
        return list(pool.map(work, items))


def missing(storage: Storage, name: str, next_step: str) -> MissingFileError:
    """The error that ``name`` is not there."""
    return MissingFileError(f"{storage.locate(name)}: missing.", next_step)


def read_file(storage: Storage, name: str, next_step: str) -> bytes:
    """The bytes of ``name``; raises MissingFileError naming it and ``next_step``."""
    try:
        return storage.read(name)
    except ABSENT as error:
        raise missing(storage, name, next_step) from error


def check_file(
    storage: Storage,
    name: str,
    expected: tuple[int, str],
    next_step: str,
    advance: Callable[[int], None] = lambda num_bytes: None,
) -> None:
    """Raise unless the file has its size and SHA-256; ``advance`` is told of bytes as they come."""
    for chunk in checked_chunks(storage, name, expected, next_step):
        advance(len(chunk))


def checked_chunks(
    storage: Storage, name: str, expected: tuple[int, str], next_step: str
) -> Iterator[bytes]:
    """The file piece by piece; after the last one raises unless it had its size and SHA-256."""
    num_bytes, sha256 = expected
    found = storage.size(name)
    if found is None:
        raise missing(storage, name, next_step)
    if found != num_bytes:
        raise CorruptFileError(
            f"{storage.locate(name)}: damaged: expected {num_bytes} bytes, found {found}.",
            next_step,
        )
    digest = hashlib.sha256()
    try:
        for chunk in storage.chunks(name, num_bytes):
            digest.update(chunk)
            yield chunk
    except ABSENT as error:
        raise missing(storage, name, next_step) from error
    if digest.hexdigest() != sha256:
        raise CorruptFileError(
            f"{storage.locate(name)}: damaged: expected SHA-256 {sha256}, found "
            f"{digest.hexdigest()}.",
            next_step,
        )
