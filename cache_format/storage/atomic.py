"""Files and directories that are whole or absent, whatever kills the process that writes them.

Everything is written under a temporary name ``.tmp-*`` beside its target, flushed, fsynced and
renamed; then the directory is fsynced, so that the name outlives a power cut too. A process holds
a lock (``flock``) on what it is writing: whoever gets the lock knows that the writer is dead.
"""

import errno
import fcntl
import io
import os
import secrets
import shutil
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from cache_format.errors import Action, NextStep, StorageError
from cache_format.storage.os_errors import reading, writing

TEMPORARY_PREFIX = ".tmp-"

_NO_HARD_LINKS = {errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK}


def files_below(root: Path) -> list[Path]:
    """All files and symbolic links below ``root``; OSError where a directory cannot be read.

    ``Path.rglob`` passes over such a directory, so what is in it would silently be left out.
    """
    found = []
    for directory, directories, files in os.walk(root, onerror=_raise):
        links = [name for name in directories if os.path.islink(os.path.join(directory, name))]
        found += [Path(directory, name) for name in (*files, *links)]
    return sorted(found)


@contextmanager
def atomic_file(path: Path) -> Iterator[BinaryIO]:
    """A binary file that becomes ``path`` when the block ends; an exception publishes nothing."""
    with writing(path):
        with _locked_temporary(path, _create_file) as (temporary, descriptor):
            with open(descriptor, "wb", closefd=False) as sink:
                yield sink
            os.fsync(descriptor)
            os.replace(temporary, path)
        _fsync(path.parent)


def publish_bytes(path: Path, data: bytes) -> None:
    """Make ``path`` hold ``data``, in place of what it held before."""
    with atomic_file(path) as sink:
        sink.write(data)


def publish_exclusive(path: Path, data: bytes) -> bool:
    """Make ``path`` hold ``data`` unless it exists; returns whether this call created it.

    The first of several processes wins, and nobody ever sees a part of the content. Where the
    file system has no hard links, two processes at the same instant may both win: the last stays.
    """
    with writing(path):
        with _locked_temporary(path, _create_file) as (temporary, descriptor):
            with open(descriptor, "wb", closefd=False) as sink:
                sink.write(data)
            os.fsync(descriptor)
            created = _link(temporary, path)
            _remove(temporary)
        _fsync(path.parent)
        return created


@contextmanager
def publish_directory(path: Path) -> Iterator[Path]:
    """A directory to fill that becomes ``path`` when the block ends; not after an exception.

    Raises FileExistsError if ``path`` is there by then and is not an empty directory.
    """
    with writing(path):
        with _locked_temporary(path, _create_directory) as (temporary, _):
            yield temporary
            _fsync_tree(temporary)
            _rename_directory(temporary, path)
        _fsync(path.parent)


@contextmanager
def replace_directory(path: Path) -> Iterator[Path]:
    """As ``publish_directory``; what was at ``path`` stays there until the new one is whole.

    It takes two renames: who looks between them finds nothing, and so does the next command if the
    process is killed there.
    """
    aside = _temporary_beside(path)
    with writing(path):
        with _locked_temporary(path, _create_directory) as (temporary, _):
            yield temporary
            _fsync_tree(temporary)
            with suppress(FileNotFoundError):
                os.rename(path, aside)
            try:
                _rename_directory(temporary, path)
            except BaseException:
                with suppress(FileNotFoundError):
                    os.rename(aside, path)
                raise
        _fsync(path.parent)
    remove_leftovers(path.parent, path.name)  # the old one, too


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Keep other processes out of the block; the lock is on ``path``, and dies with its holder.

    A file system without locks lets everyone in.
    """
    with reading(path):
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        with suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


@contextmanager
def lock_unless_held(path: Path) -> Iterator[bool]:
    """``locked`` without waiting: False where another process holds the lock, which it then keeps.

    A file system without locks lets everyone in.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        is_ours = True
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            is_ours = False
        except OSError:
            pass
        yield is_ours
    finally:
        os.close(descriptor)


def regular_descriptor(path: Path) -> int:
    """A descriptor of the file ``path``, to be read. Raises StorageError for a pipe or a device,
    which may come with a stranger's directory: one is waited for, the other has no end."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    if stat.S_ISREG(os.fstat(descriptor).st_mode) or stat.S_ISDIR(os.fstat(descriptor).st_mode):
        return descriptor
    os.close(descriptor)
    raise StorageError(f"{path}: not a regular file, but a pipe or a device. Nothing was read.")


def open_regular(path: Path) -> io.BufferedReader:
    """``regular_descriptor`` as a file object. Raises IsADirectoryError for a directory."""
    if path.is_dir():
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    return open(regular_descriptor(path), "rb")


def make_directory(path: Path) -> None:
    """Make ``path`` and its parents, durably; all or some of them may be there already."""
    with writing(path):
        is_new = not path.is_dir()
        if is_new:
            if not path.parent.is_dir():
                make_directory(path.parent)
            try:
                path.mkdir(exist_ok=True)
            except FileExistsError as error:
                raise StorageError(
                    f"{path}: not a directory but a file, or a link to a disk that is not mounted.",
                    NextStep(
                        "Mount the disk or move the file away, then run again.", Action.RUN_AGAIN
                    ),
                ) from error
        # Also where it was there: whoever made it may have been killed before this.
        if is_new or os.access(path.parent, os.R_OK):
            _fsync(path.parent)


def remove_file(path: Path) -> None:
    """Remove ``path`` durably, if it is there."""
    with writing(path):
        path.unlink(missing_ok=True)
        _fsync(path.parent)


def remove_directory(path: Path) -> None:
    """Remove what is at ``path``, all at once for whoever looks, if there is anything."""
    with writing(path), suppress(FileNotFoundError):
        aside = _temporary_beside(path)
        os.rename(path, aside)
        _remove(aside)


def fsync_directory(path: Path) -> None:
    """Make the names in the directory ``path`` durable."""
    with writing(path):
        _fsync(path)


def is_temporary(path: Path) -> bool:
    """Whether ``path`` is something half-written, which readers pass over."""
    return path.name.startswith(TEMPORARY_PREFIX)


def remove_leftovers(directory: Path, of: str = "") -> None:
    """Remove what killed processes left half-written in ``directory``; living ones keep theirs.

    With ``of``, the name of a file, what was to become that file only.
    What cannot be removed stays: it harms nobody.
    """
    with reading(directory):
        names = sorted(os.listdir(directory))
    prefix = f"{TEMPORARY_PREFIX}{of}-" if of else TEMPORARY_PREFIX
    for path in (directory / name for name in names if name.startswith(prefix)):
        with suppress(OSError):
            descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                _remove(path)
            finally:
                os.close(descriptor)


def _create_file(path: Path) -> int:
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)


def _create_directory(path: Path) -> int:
    while True:
        path.mkdir()
        try:
            return os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except FileNotFoundError:  # taken for dead at once: see _create_locked
            continue
        except BaseException:
            _remove(path)
            raise


@contextmanager
def _locked_temporary(path: Path, create: Callable[[Path], int]) -> Iterator[tuple[Path, int]]:
    """A new temporary beside ``path`` and its locked descriptor.

    The block gives it its name, or removes it; an exception removes it too.
    """
    temporary, descriptor = _create_locked(path, create)
    try:
        yield temporary, descriptor
    except BaseException:
        _remove(temporary)
        raise
    finally:
        os.close(descriptor)


def _create_locked(path: Path, create: Callable[[Path], int]) -> tuple[Path, int]:
    """Create a temporary and lock it.

    Between creation and lock, ``remove_leftovers`` of another process may take it for dead and
    remove it: then try again.
    """
    while True:
        temporary = _temporary_beside(path)
        descriptor = create(temporary)
        try:
            with suppress(OSError):  # a file system without locks: nobody will clean up either
                fcntl.flock(descriptor, fcntl.LOCK_EX)
            with suppress(FileNotFoundError):
                os.stat(temporary)
                return temporary, descriptor
        except BaseException:
            _remove(temporary)
            os.close(descriptor)
            raise
        os.close(descriptor)


def _temporary_beside(path: Path) -> Path:
    return path.with_name(f"{TEMPORARY_PREFIX}{path.name}-{secrets.token_hex(6)}")


def _remove(temporary: Path) -> None:
    """Remove a temporary. One that cannot be removed is a leftover, which harms nobody."""
    try:
        temporary.unlink(missing_ok=True)
    except OSError:  # a directory: IsADirectoryError on Linux, PermissionError elsewhere
        shutil.rmtree(temporary, ignore_errors=True)


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
    for directory, _, names in os.walk(root, onerror=_raise):
        for name in names:
            # Some libraries write for the owner alone.
            _fsync(os.path.join(directory, name), 0o666 & ~umask)
        _fsync(directory)


def _fsync(path: str | Path, mode: int | None = None) -> None:
    """fsync a file or directory, after giving it ``mode``."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        if mode is not None:
            os.fchmod(descriptor, mode)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _raise(error: OSError) -> None:
    raise error
