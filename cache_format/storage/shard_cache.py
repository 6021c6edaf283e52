"""Local copies of a remote cache's files, in a directory that never outgrows its bound.

A shard is fetched whole, compared with its SHA-256 on the way, and published under its name, which
has its hash in it: so a copy is the right one or none. The one that was not read for longest gives
way first. Threads and processes share a directory: each reserves its room under a lock before it
fetches, and what is open stays readable while its name is removed.
"""

import os
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from cache_format.errors import CorruptFileError, MissingFileError
from cache_format.storage import atomic
from cache_format.storage.base import Storage, check_file, checked_chunks
from cache_format.storage.local import LocalStorage
from cache_format.storage.os_errors import reading, writing

_POLL_SECONDS = 0.02


def default_directory() -> Path:
    """Where copies are held unless another directory is given."""
    base = os.environ.get("XDG_CACHE_HOME")
    return Path(base or Path.home() / ".cache") / "xlstm-distill"


class LocalCopies:
    """See ``LocalFiles`` for the public methods."""

    def __init__(self, storage: Storage, directory: Path, max_bytes: int) -> None:
        self.directory, self.max_bytes = directory, max_bytes
        self._storage = storage
        self._local = LocalStorage(directory)
        self._locks: dict[str, threading.Lock] = {}

    def open(self, name: str, expected: tuple[int, str], next_step: str) -> int:
        path = self._local.locate(name)
        with self._lock_of(name):
            try:
                with reading(path):
                    descriptor = os.open(path, os.O_RDONLY)
            except FileNotFoundError:
                return self._fetch(name, expected, next_step, max_bytes=self.max_bytes)
            with suppress(OSError):  # another user's
                os.utime(descriptor)  # the order in which copies give way
            return descriptor

    def path(self, name: str, expected: tuple[int, str], next_step: str) -> Path:
        with self._lock_of(name):
            try:
                check_file(self._local, name, expected, next_step)
            except (CorruptFileError, MissingFileError):
                os.close(self._fetch(name, expected, next_step, max_bytes=None))
            return self._local.locate(name)

    def drop(self, name: str) -> bool:
        with self._lock_of(name):
            path = self._local.locate(name)
            with writing(path):
                path.unlink(missing_ok=True)
            return True  # also where another thread has dropped it meanwhile

    def _lock_of(self, name: str) -> threading.Lock:
        """Held while a file is looked for and fetched, so that no two threads fetch it."""
        return self._locks.setdefault(name, threading.Lock())

    def _fetch(
        self, name: str, expected: tuple[int, str], next_step: str, *, max_bytes: int | None
    ) -> int:
        """Fetch the file and publish the copy; returns a descriptor of it.

        The descriptor is taken before the copy has its name: what gets a name may lose it again
        before it could be opened. Bytes that the network damaged are fetched once more.
        """
        directory = self._local.locate(name).parent
        atomic.make_directory(directory)
        try:
            return self._fetch_once(name, expected, next_step, max_bytes)
        except CorruptFileError:
            return self._fetch_once(name, expected, next_step, max_bytes)

    def _fetch_once(
        self, name: str, expected: tuple[int, str], next_step: str, max_bytes: int | None
    ) -> int:
        path = self._local.locate(name)
        with ExitStack() as on_failure, ExitStack() as stack:
            sink = stack.enter_context(_reserved(path, expected[0], max_bytes))
            descriptor = os.dup(sink.fileno())
            on_failure.callback(os.close, descriptor)
            for chunk in checked_chunks(self._storage, name, expected, next_step):
                sink.write(chunk)
            sink.flush()
            os.fsync(descriptor)  # before the lock, which others wait for
            with atomic.locked(path.parent):
                stack.close()
            on_failure.pop_all()
            return descriptor


@contextmanager
def _reserved(path: Path, num_bytes: int, max_bytes: int | None) -> Iterator[BinaryIO]:
    """A file that becomes ``path``, of ``num_bytes`` from the start: they count as taken.

    Where what others are fetching takes too much, waits until it has become copies, which can go.
    """
    if max_bytes is not None and num_bytes > max_bytes:
        raise ValueError(
            f"local_bytes: one shard takes {num_bytes:,} bytes, more than the {max_bytes:,} that "
            f"copies in {path.parent} may take. Raise this limit."
        )
    with ExitStack() as stack:
        sink: BinaryIO | None = None
        while sink is None:
            with atomic.locked(path.parent):
                if max_bytes is None or _make_room(path.parent, max_bytes - num_bytes):
                    sink = stack.enter_context(atomic.atomic_file(path))
                    sink.truncate(num_bytes)
            if sink is None:
                time.sleep(_POLL_SECONDS)
        yield sink


def _make_room(directory: Path, at_most: int) -> bool:
    """Remove the copies that were not read for longest until no more than ``at_most`` bytes are
    taken; whether that could be done. Called, as files get their names, under the lock."""
    with reading(directory):
        atomic.remove_leftovers(directory)
        files = sorted(_copies(directory))
        used = sum(size for _, size, _ in files)
        for _, size, path in files:
            if used > at_most and not atomic.is_temporary(path):
                path.unlink(missing_ok=True)
                used -= size
    return used <= at_most


def _copies(directory: Path) -> Iterator[tuple[int, int, Path]]:
    """When each file in ``directory`` was last read, and its size; those in the making too."""
    for name in os.listdir(directory):
        with suppress(FileNotFoundError):
            found = (directory / name).stat()
            yield found.st_mtime_ns, found.st_size, directory / name
