"""A cache in a directory of this machine: the one half of the interface in ``base.py``.

Files are published by ``atomic.py``: whole or absent, and there after a power cut. What the system
refuses is named by ``failures.py``.
"""

import os
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import BinaryIO

from cache_format.errors import CHOOSE_DIRECTORY, ForeignDirectoryError
from cache_format.storage import atomic
from cache_format.storage.base import ABSENT, LocalFiles, LocalSpace, check_file, missing
from cache_format.storage.os_errors import reading

_CHUNK_BYTES = 1 << 22


class LocalStorage:
    """A directory of this machine; see ``Storage`` and ``LocalFiles`` for the methods."""

    max_bytes = None
    num_requests = 1

    def __init__(self, root: Path) -> None:
        self.root = self.directory = root

    def locate(self, name: str) -> Path:
        return self.root / name

    def read(self, name: str) -> bytes:
        path = self.root / name
        with reading(path), atomic.open_regular(path) as source:
            return source.read()

    def chunks(self, name: str, num_bytes: int) -> Iterator[bytes]:
        path = self.root / name
        with reading(path), atomic.open_regular(path) as source:
            while chunk := source.read(min(_CHUNK_BYTES, num_bytes)):
                num_bytes -= len(chunk)
                yield chunk

    def size(self, name: str) -> int | None:
        path = self.root / name
        try:
            with reading(path):
                return path.stat().st_size
        except ABSENT:
            return None

    def identity(self, name: str) -> tuple[int, int, int] | None:
        path = self.root / name
        try:
            with reading(path):
                found = path.stat()
        except ABSENT:
            return None
        return found.st_size, found.st_mtime_ns, found.st_ino

    def has(self, name: str) -> bool:
        return os.path.lexists(self.root / name)

    def list_names(self, directory: str) -> list[str]:
        # ``glob`` would hide a failing disk.
        path = self.root / directory
        try:
            with reading(path):
                return sorted(os.listdir(path))
        except ABSENT:
            return []

    def files_below(self, directory: str) -> list[str]:
        def fail(error: OSError) -> None:
            if not isinstance(error, FileNotFoundError):
                raise error

        path = self.root / directory
        with reading(path):
            return sorted(
                Path(parent, name).relative_to(self.root).as_posix()
                for parent, _, names in os.walk(path, onerror=fail)
                for name in names
            )

    def prepare(self, directory: str) -> None:
        path = self.root / directory
        with reading(path):
            is_file = path.is_file()
        if is_file:
            raise ForeignDirectoryError(
                f"{path}: not a cache: expected a directory, but it is a file.",
                CHOOSE_DIRECTORY,
            )
        atomic.make_directory(path)
        atomic.remove_leftovers(path)

    def publish(self, name: str, data: bytes) -> None:
        atomic.publish_bytes(self.root / name, data)

    def publish_exclusive(self, name: str, data: bytes) -> bool:
        return atomic.publish_exclusive(self.root / name, data)

    def publish_file(self, name: str) -> AbstractContextManager[BinaryIO]:
        return atomic.atomic_file(self.root / name)

    def publish_directory(self, name: str) -> AbstractContextManager[Path]:
        return atomic.publish_directory(self.root / name)

    def remove(self, name: str) -> None:
        atomic.remove_file(self.root / name)

    def remove_directory(self, name: str) -> None:
        atomic.remove_directory(self.root / name)

    def locked(self, directory: str) -> AbstractContextManager[None]:
        return atomic.locked(self.root / directory)

    def sync(self, directory: str) -> None:
        atomic.fsync_directory(self.root / directory)

    def local_files(self, cache_id: str, space: LocalSpace) -> LocalFiles:
        return self

    def open(self, name: str, expected: tuple[int, str], next_step: str) -> int:
        path = self.root / name
        try:
            with reading(path):
                return atomic.regular_descriptor(path)
        except ABSENT as error:
            raise missing(self, name, next_step) from error

    def path(self, name: str, expected: tuple[int, str], next_step: str) -> Path:
        check_file(self, name, expected, next_step)
        return self.root / name

    def drop(self, name: str) -> bool:
        return False
