"""Turn OS errors into errors that name the file and the next step.

A write(2) or read(2) that fails says neither which file nor what to do. Called around everything
that reads or writes a file of a cache. It says nothing about what is in the file: a disk that
cannot be read is no damaged cache.
"""

import errno
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cache_format.errors import Action, NextStep, NoSpaceError, StorageError

_FULL = {errno.ENOSPC, errno.EDQUOT}
_FORBIDDEN = {errno.EROFS, errno.EACCES, errno.EPERM}
_FAILING = {
    *(errno.EIO, errno.EFBIG, errno.ENXIO, errno.ENODEV, errno.ESTALE, errno.ETIMEDOUT),
    *(errno.ENOTCONN, errno.ELOOP, errno.ENAMETOOLONG, errno.EMFILE, errno.ENFILE),
}
_OF_OTHER_LANGUAGES = re.compile(r"\(os error ([0-9]+)\)")


def _again(first: str) -> NextStep:
    text = f"{first}, then run again: what was finished is kept."
    return NextStep(text, Action.RUN_AGAIN)


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn a refusal to write inside the block into a NoSpaceError or StorageError of ``path``.

    Failures that say something about names (a file is there, or is not) pass through.
    """
    try:
        yield
    except StorageError:
        raise  # named where it happened
    except Exception as error:
        number = _number(error)
        if number in _FULL:
            raise NoSpaceError(
                f"{path}: no space left on the disk or in the quota while writing it. No partial "
                "file was published.",
                _again("Free some space"),
            ) from error
        if number in _FORBIDDEN | _FAILING:
            step = "Check the disk or the mount"
            if number in _FORBIDDEN:
                step = "Make its directory writable, or work on a copy of it"
            raise StorageError(
                f"{path}: could not be written: {os.strerror(number)}. No partial file was "
                "published.",
                _again(step),
            ) from error
        raise


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Turn a refusal to read inside the block into a StorageError of ``path``.

    That something is not there passes through.
    """
    try:
        yield
    except (FileNotFoundError, NotADirectoryError):
        raise
    except OSError as error:
        step = "Check the disk or the mount"
        if error.errno in _FORBIDDEN:
            step = "Make it readable"
        raise StorageError(
            f"{path}: could not be read: {error.strerror or error}. The file itself may be intact. "
            f"{step}, then try again."
        ) from error


def _number(error: Exception) -> int:
    """The system's number of what went wrong; 0 where it was nothing of the system's."""
    if isinstance(error, OSError):
        return error.errno or 0
    # Libraries written in other languages raise errors of their own with the system's text.
    match = _OF_OTHER_LANGUAGES.search(str(error))
    if match is not None:
        return int(match[1])
    return errno.ENOSPC if os.strerror(errno.ENOSPC) in str(error) else 0
