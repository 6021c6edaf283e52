"""Which files an interrupted verification has found whole, so that the next one goes on from there.

In: a file outside of the cache, which readers do not write to. It has one line of JSON for each
file that was read and was right: its path, its SHA-256, and size, time and inode, so that a file
that was changed since is read again.
"""

import json
import os
from pathlib import Path
from threading import Lock
from types import TracebackType
from typing import Any, BinaryIO

from cache_format.storage.os_errors import reading, writing

_BEGINNING = b'\n["'
Identity = tuple[int, int, int]
"""Size, time of the last change in nanoseconds, inode."""


class VerifiedFiles:
    """The files that were found whole; use with ``with``.

    After an exception the record stays, for the next verification; otherwise it is deleted, so that
    the next one reads everything again. Without a ``path`` nothing is remembered.
    """

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._lock = Lock()
        self._sink: BinaryIO | None = None
        self._known: set[tuple[Any, ...]] = set()

    def __enter__(self) -> "VerifiedFiles":
        if self._path is not None:
            require_record(self._path)
            with writing(self._path):
                self._path.parent.mkdir(parents=True, exist_ok=True)
                self._sink = self._path.open("ab")
            with reading(self._path):
                self._known = set(map(_entry, self._path.read_bytes().splitlines()))
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._sink is not None and self._path is not None:
            self._sink.close()
            if kind is None:
                self._path.unlink(missing_ok=True)

    def has(self, path: Path | str, sha256: str, identity: Identity) -> bool:
        """Whether this file, as it is now, was found to have ``sha256``."""
        return (os.path.abspath(path), sha256, *identity) in self._known

    def add(self, path: Path | str, sha256: str, identity: Identity) -> None:
        """The file was read from beginning to end, and has ``sha256``."""
        if self._sink is None or self._path is None:
            return
        line = json.dumps([os.path.abspath(path), sha256, *identity])
        with self._lock, writing(self._path):
            # The line feed comes first: the line before may have been cut short by a kill.
            self._sink.write(b"\n" + line.encode())
            self._sink.flush()


def require_record(path: Path) -> None:
    """Raise ValueError if ``path`` is a file with something else in it: it would be deleted."""
    try:
        with reading(path), path.open("rb") as source:
            beginning = source.read(len(_BEGINNING))
    except FileNotFoundError:
        return
    if not _BEGINNING.startswith(beginning):  # it may have been cut short by a kill
        raise ValueError(
            f"{path}: exists, but is not a record of a verification. Choose another file; "
            "nothing was changed."
        )


def _entry(line: bytes) -> tuple[Any, ...]:
    """What a line says; nothing if it was cut short."""
    try:
        fields = json.loads(line)
    except (ValueError, RecursionError):
        return ()
    is_flat = isinstance(fields, list) and not any(isinstance(f, list | dict) for f in fields)
    return tuple(fields) if is_flat else ()
