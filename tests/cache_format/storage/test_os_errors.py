"""What the system refuses is named; what it did not refuse passes through."""

import errno
import os
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from cache_format.errors import CacheError, CorruptFileError, NoSpaceError, StorageError
from cache_format.storage.os_errors import reading, writing

PATH = Path("cache/shards/file")


class ForeignError(Exception):
    """As libraries in Rust raise it: no OSError."""


def _os_error(number: int) -> OSError:
    return OSError(number, os.strerror(number))


@pytest.mark.parametrize(
    "error",
    [
        _os_error(errno.ENOSPC),
        _os_error(errno.EDQUOT),
        ForeignError("I/O error: No space left on device (os error 28)"),
        ForeignError(f"cannot write: {os.strerror(errno.ENOSPC)}"),
        ForeignError(f"I/O error: quota (os error {errno.EDQUOT})"),
    ],
)
def test_a_full_disk_raises_no_space_error(error: Exception) -> None:
    message = r"file: no space left.*Free some space"
    with pytest.raises(NoSpaceError, match=message) as caught, writing(PATH):
        raise error
    assert caught.value.__cause__ is error


@pytest.mark.parametrize(
    ("error", "text", "step"),
    [
        (_os_error(errno.EIO), "Input/output error", "Check the disk"),
        (ForeignError("I/O error (os error 5)"), "Input/output error", "Check the disk"),
        (_os_error(errno.EROFS), "Read-only file system", "Make its directory writable"),
        (_os_error(errno.EACCES), "Permission denied", "Make its directory writable"),
        (_os_error(errno.EFBIG), "File too large", "Check the disk"),
        (_os_error(errno.EMFILE), "Too many open files", "Check the disk"),
    ],
)
def test_an_operating_system_write_error_names_file_and_next_step(
    error: Exception, text: str, step: str
) -> None:
    message = rf"file: could not be written: {text}\. No partial file was published\. {step}"
    with pytest.raises(StorageError, match=message) as caught, writing(PATH):
        raise error
    assert not isinstance(caught.value, NoSpaceError)


@pytest.mark.parametrize(
    "error",
    [
        FileExistsError(errno.EEXIST, "is there"),
        FileNotFoundError(errno.ENOENT, "is not there"),
        ConnectionResetError(errno.ECONNRESET, "of the network"),
        OSError("without a number"),
        ForeignError("something else (os error x)"),
        CorruptFileError("a verdict"),
        KeyboardInterrupt(),
    ],
)
def test_other_errors_while_writing_propagate_unchanged(error: BaseException) -> None:
    with pytest.raises(type(error)) as caught, writing(PATH):
        raise error
    assert caught.value is error


def test_an_operating_system_read_error_names_file_and_next_step() -> None:
    message = r"file: could not be read: Input/output error\. The file itself may be intact"
    with pytest.raises(StorageError, match=message), reading(PATH):
        raise _os_error(errno.EIO)
    with pytest.raises(StorageError, match=r"Permission denied.*Make it readable"), reading(PATH):
        raise _os_error(errno.EACCES)


@pytest.mark.parametrize("error", [FileNotFoundError(), NotADirectoryError(), CacheError("x")])
def test_other_errors_while_reading_propagate_unchanged(error: Exception) -> None:
    with pytest.raises(type(error)) as caught, reading(PATH):
        raise error
    assert caught.value is error


@pytest.mark.parametrize("around", [reading, writing])
def test_an_error_that_names_its_file_is_not_wrapped_again(
    around: Callable[[Path], AbstractContextManager[None]],
) -> None:
    with pytest.raises(StorageError, match=r"^inner: "), around(PATH), around(Path("inner")):
        raise _os_error(errno.EIO)
