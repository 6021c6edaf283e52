"""Files and directories that are whole or absent, whatever kills the process that writes them.

Everything is written under a temporary name ``.tmp-*`` beside its target, flushed, fsynced and
renamed; then the directory is fsynced, so that the name outlives a power cut too. A process holds
a lock (``flock``) on what it is writing: whoever gets the lock knows that the writer is dead.
Called by the cache's writer, by checkpoints and by everything else that publishes a file.
"""

import errno
import fcntl
import os
import secrets
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from cache_format.errors import NoSpaceError

TEMPORARY_PREFIX = ".tmp-"

_FULL = {errno.ENOSPC, errno.EDQUOT}
_NO_HARD_LINKS = {errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK}


@contextmanager
def atomic_file(path: Path) -> Iterator[BinaryIO]:
    """A binary file that becomes ``path`` when the block ends; an exception publishes nothing."""
    with naming_full_disks(path):
        temporary, descriptor = _create_locked(path, _create_file)
        try:
            with open(descriptor, "wb", closefd=False) as sink:
                yield sink
            os.fsync(descriptor)
            os.replace(temporary, path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        finally:
            os.close(descriptor)
        fsync_directory(path.parent)


def publish_bytes(path: Path, data: bytes) -> None:
    """Make ``path`` hold ``data``, in place of what it held before."""
    with atomic_file(path) as sink:
        sink.write(data)


def publish_exclusive(path: Path, data: bytes) -> bool:
    """Make ``path`` hold ``data`` unless it exists; returns whether this call created it.

    The first of several processes wins, and nobody ever sees a part of the content. Where the
    file system has no hard links, two processes at the same instant may both win: the last stays.
    """
    with naming_full_disks(path):
        temporary, descriptor = _create_locked(path, _create_file)
        try:
            with open(descriptor, "wb", closefd=False) as sink:
                sink.write(data)
            os.fsync(descriptor)
            created = _link(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
            os.close(descriptor)
        fsync_directory(path.parent)
        return created


@contextmanager
def publish_directory(path: Path) -> Iterator[Path]:
    """A directory to fill that becomes ``path`` when the block ends; not after an exception.

    Raises FileExistsError if ``path`` is there by then and is not an empty directory.
    """
    with naming_full_disks(path):
        temporary, descriptor = _create_locked(path, _create_directory)
        try:
            yield temporary
            _fsync_tree(temporary)
            _rename_directory(temporary, path)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise
        finally:
            os.close(descriptor)
        fsync_directory(path.parent)


def fsync_directory(path: Path) -> None:
    """Make the names in the directory ``path`` durable."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def naming_full_disks(path: Path) -> Iterator[None]:
    """Turn a full disk or quota inside the block into a NoSpaceError that names ``path``."""
    try:
        yield
    except Exception as error:
        # Libraries written in other languages raise errors of their own with the system's text.
        full = isinstance(error, OSError) and error.errno in _FULL
        if full or (not isinstance(error, OSError) and os.strerror(errno.ENOSPC) in str(error)):
            raise NoSpaceError(
                f"{path}: no space left on the disk or in the quota while writing it. Nothing was "
                "half-published. Free some space, then run the same command again: it goes on "
                "from what is finished."
            ) from error
        raise


def is_temporary(path: Path) -> bool:
    """Whether ``path`` is something half-written, which readers pass over."""
    return path.name.startswith(TEMPORARY_PREFIX)


def remove_leftovers(directory: Path) -> None:
    """Remove what killed processes left half-written in ``directory``; living ones keep theirs."""
    for path in sorted(directory.glob(f"{TEMPORARY_PREFIX}*")):
        with suppress(OSError):
            descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if path.is_dir():
                    shutil.rmtree(path, ignore_errors=True)
                else:
                    path.unlink()
            finally:
                os.close(descriptor)


def _create_file(path: Path) -> int:
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)


def _create_directory(path: Path) -> int:
    while True:
        path.mkdir()
        with suppress(FileNotFoundError):  # taken for dead at once: see _create_locked
            return os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)


def _create_locked(path: Path, create: Callable[[Path], int]) -> tuple[Path, int]:
    """A new temporary beside ``path`` and its locked descriptor.

    Between creation and lock, ``remove_leftovers`` of another process may take it for dead and
    remove it: then try again.
    """
    while True:
        temporary = path.with_name(f"{TEMPORARY_PREFIX}{path.name}-{secrets.token_hex(6)}")
        descriptor = create(temporary)
        with suppress(OSError):  # a file system without locks: nobody will clean up either
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        if temporary.exists():
            return temporary, descriptor
        os.close(descriptor)


def _link(temporary: Path, path: Path) -> bool:
    try:
        os.link(temporary, path)
    except FileExistsError:
        return False
    except OSError as error:
        if error.errno not in _NO_HARD_LINKS:
            raise
        if path.exists():
            return False
        os.replace(temporary, path)
    return True


def _rename_directory(temporary: Path, path: Path) -> None:
    try:
        os.rename(temporary, path)
    except OSError as error:
        if error.errno in {errno.EEXIST, errno.ENOTEMPTY, errno.ENOTDIR}:
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(path)) from error
        raise


def _fsync_tree(root: Path) -> None:
    umask = os.umask(0)
    os.umask(umask)
    for directory, _, names in os.walk(root):
        for name in names:
            descriptor = os.open(os.path.join(directory, name), os.O_RDONLY)
            try:
                os.fchmod(descriptor, 0o666 & ~umask)  # some libraries write for the owner alone
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
        fsync_directory(Path(directory))
