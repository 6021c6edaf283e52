"""Whole or absent: success, exceptions, full disks, leftovers of the dead, locks of the living."""

import errno
import fcntl
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cache_format.errors import NoSpaceError, StorageError
from cache_format.storage import atomic


def _names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


def _write_file(path: Path) -> None:
    with atomic.atomic_file(path) as sink:
        sink.write(b"new")


def _write_exclusive(path: Path) -> None:
    atomic.publish_exclusive(path, b"new")


def _write_directory(path: Path) -> None:
    with atomic.publish_directory(path) as directory:
        (directory / "inner").mkdir()
        (directory / "inner" / "file").write_bytes(b"new")


def _replace_directory(path: Path) -> None:
    with atomic.replace_directory(path) as directory:
        (directory / "file").write_bytes(b"new")


WRITERS = [_write_file, _write_exclusive, _write_directory, _replace_directory]


@pytest.mark.parametrize("write", WRITERS)
def test_publishing_leaves_no_temporary_files(
    write: Callable[[Path], None], tmp_path: Path
) -> None:
    write(tmp_path / "target")
    assert _names(tmp_path) == ["target"]


def _old_directory(path: Path) -> Path:
    path.mkdir()
    (path / "old").write_bytes(b"old")
    return path


def test_replacing_a_directory_removes_the_old_one_and_leftovers(tmp_path: Path) -> None:
    target = _old_directory(tmp_path / "target")
    _old_directory(tmp_path / ".tmp-target-0123456789ab")  # one that was killed
    with atomic.replace_directory(target) as directory:
        (directory / "file").write_bytes(b"new")
        assert _names(target) == ["old"]
    assert _names(target) == ["file"]
    assert _names(tmp_path) == ["target"]


def test_a_directory_that_cannot_be_replaced_stays_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = _old_directory(tmp_path / "target")
    with pytest.raises(KeyError), atomic.replace_directory(target):
        raise KeyError
    assert _names(tmp_path) == ["target"]

    def refuse(*_: Any) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(atomic, "_rename_directory", refuse)
    with pytest.raises(StorageError, match="target: could not be written"):
        _replace_directory(target)
    assert _names(tmp_path) == ["target"]
    assert _names(target) == ["old"]


def test_publishing_a_file_replaces_the_old_one(tmp_path: Path) -> None:
    target = tmp_path / "target"
    target.write_bytes(b"old")
    with atomic.atomic_file(target) as sink:
        sink.write(b"new")
        sink.flush()
        assert target.read_bytes() == b"old"
    assert target.read_bytes() == b"new"
    atomic.publish_bytes(target, b"newer")
    assert target.read_bytes() == b"newer"
    umask = os.umask(0)
    os.umask(umask)
    assert target.stat().st_mode & 0o777 == 0o666 & ~umask


def test_a_sink_closed_early_is_published(tmp_path: Path) -> None:
    with atomic.atomic_file(tmp_path / "target") as sink:
        sink.write(b"new")
        sink.close()
    assert (tmp_path / "target").read_bytes() == b"new"


def test_an_exception_publishes_nothing(tmp_path: Path) -> None:
    target = tmp_path / "target"
    target.write_bytes(b"old")

    def fail_in_file() -> None:
        with atomic.atomic_file(target) as sink:
            sink.write(b"new")
            raise KeyError

    def fail_in_directory() -> None:
        with atomic.publish_directory(tmp_path / "other") as directory:
            (directory / "file").write_bytes(b"new")
            raise KeyError

    for fail in (fail_in_file, fail_in_directory):
        with pytest.raises(KeyError):
            fail()
    assert _names(tmp_path) == ["target"]
    assert target.read_bytes() == b"old"


def test_of_two_exclusive_writes_the_first_wins(tmp_path: Path) -> None:
    target = tmp_path / "target"
    assert atomic.publish_exclusive(target, b"first")
    assert not atomic.publish_exclusive(target, b"second")
    assert target.read_bytes() == b"first"
    assert _names(tmp_path) == ["target"]


def test_exclusive_writes_work_without_hard_links(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "link", _raising(errno.EPERM))
    test_of_two_exclusive_writes_the_first_wins(tmp_path)


def test_publishing_a_directory_never_replaces_an_existing_one(tmp_path: Path) -> None:
    target = tmp_path / "target"
    _write_directory(target)
    with pytest.raises(FileExistsError, match="target"):
        _write_directory(target)
    assert _names(tmp_path) == ["target"]
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(FileExistsError, match="file"):
        _write_directory(tmp_path / "file")


@pytest.mark.parametrize("write", WRITERS)
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
@pytest.mark.parametrize("call", ["fsync", "replace", "link", "rename"])
def test_a_full_disk_is_named_and_leaves_nothing(
    write: Callable[[Path], None],
    number: int,
    call: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    used = {"fsync": WRITERS, "replace": [_write_file], "link": [_write_exclusive]}
    if write not in used.get(call, [_write_directory]):
        return
    target = tmp_path / "target"
    with monkeypatch.context() as patch:
        patch.setattr(os, call, _raising(number))
        with pytest.raises(NoSpaceError, match="target: no space left"):
            write(target)
    assert _names(tmp_path) == []
    write(target)
    assert target.exists()


def test_a_write_to_a_full_disk_raises_no_space_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real_open = os.open

    def full(path: Any, flags: int, mode: int = 0o777) -> int:
        descriptor = real_open(path, flags, mode)
        if ".tmp-" in str(path):
            device = real_open("/dev/full", os.O_RDWR)
            os.dup2(device, descriptor)
            os.close(device)
        return descriptor

    monkeypatch.setattr(os, "open", full)
    for write in (_write_file, _write_exclusive):
        with pytest.raises(NoSpaceError, match="target: no space left"):
            write(tmp_path / "target")
    assert _names(tmp_path) == []


def test_a_failing_disk_is_named_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "fsync", _raising(errno.EIO))
    for write in WRITERS:
        with pytest.raises(StorageError, match="target: could not be written: Input/output error"):
            write(tmp_path / "target")
    assert _names(tmp_path) == []


def test_files_are_synced_before_they_are_renamed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[str] = []
    for name in ("fsync", "replace", "link", "rename"):
        monkeypatch.setattr(os, name, _recording(calls, name))
    for write, expected in (
        (_write_file, ["fsync file", "replace", "fsync directory"]),
        (_write_exclusive, ["fsync file", "link", "fsync directory"]),
        (
            _write_directory,
            ["fsync directory", "fsync file", "fsync directory", "rename", "fsync directory"],
        ),
    ):
        calls.clear()
        write(tmp_path / write.__name__)
        assert calls == expected


def test_leftovers_of_dead_processes_alone_are_removed(tmp_path: Path) -> None:
    (tmp_path / "keep").write_bytes(b"")
    script = (
        "import os, sys, pathlib, cache_format.storage.atomic as atomic\n"
        "root = pathlib.Path(sys.argv[1])\n"
        "with atomic.atomic_file(root / 'a') as sink, atomic.publish_directory(root / 'b') as d:\n"
        "    (d / 'file').write_bytes(b'x')\n"
        "    print('ready', flush=True)\n"
        "    sys.stdin.read()\n"
        "    os.kill(os.getpid(), 9)\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", script, str(tmp_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    with process:
        assert process.stdout is not None
        assert process.stdin is not None
        process.stdout.readline()
        atomic.remove_leftovers(tmp_path)
        assert len(_names(tmp_path)) == 3
        assert sum(atomic.is_temporary(path) for path in tmp_path.iterdir()) == 2
        process.stdin.close()
        assert process.wait() == -9
    assert len(_names(tmp_path)) == 3
    atomic.remove_leftovers(tmp_path)
    assert _names(tmp_path) == ["keep"]


def test_a_temporary_file_removed_by_another_process_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real_flock = fcntl.flock
    meddling = [True, True]

    def remove_first(descriptor: int, operation: int) -> None:
        if meddling and meddling.pop():
            for path in tmp_path.glob(".tmp-*"):
                path.rmdir() if path.is_dir() else path.unlink()
        real_flock(descriptor, operation)

    monkeypatch.setattr(fcntl, "flock", remove_first)
    _write_file(tmp_path / "a")
    meddling[:] = [True, True]
    _write_directory(tmp_path / "b")
    assert _names(tmp_path) == ["a", "b"]


def _raising(number: int) -> Callable[..., None]:
    def call(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number))

    return call


def _recording(calls: list[str], name: str) -> Callable[..., None]:
    real = getattr(os, name)

    def call(*arguments: Any) -> None:
        kind = ""
        if name == "fsync":
            is_directory = os.path.isdir(os.readlink(f"/proc/self/fd/{arguments[0]}"))
            kind = " directory" if is_directory else " file"
        calls.append(name + kind)
        real(*arguments)

    return call


def test_a_full_disk_is_known_by_its_text_in_other_libraries_errors(tmp_path: Path) -> None:
    class SafetensorError(Exception):
        """As the real one: no OSError."""

    message = "I/O error: No space left on device (os error 28)"
    with pytest.raises(NoSpaceError, match="target"), atomic.publish_directory(tmp_path / "target"):
        raise SafetensorError(message)
    with pytest.raises(SafetensorError), atomic.publish_directory(tmp_path / "target"):
        raise SafetensorError("something else")
    assert _names(tmp_path) == []


def test_a_lock_admits_one_process_at_a_time(tmp_path: Path) -> None:
    def is_free() -> bool:
        descriptor = os.open(tmp_path, os.O_RDONLY)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        finally:
            os.close(descriptor)
        return True

    with atomic.locked(tmp_path):
        assert not is_free()
    assert is_free()
    with pytest.raises(KeyError), atomic.locked(tmp_path):
        raise KeyError
    assert is_free()


def test_a_lock_that_is_held_is_not_waited_for(tmp_path: Path) -> None:
    with atomic.lock_unless_held(tmp_path) as is_ours:
        assert is_ours
        with atomic.lock_unless_held(tmp_path) as is_ours_too:
            assert not is_ours_too
        with atomic.lock_unless_held(tmp_path) as is_ours_too:  # the first still has it
            assert not is_ours_too
    with pytest.raises(KeyError), atomic.lock_unless_held(tmp_path):
        raise KeyError
    with atomic.lock_unless_held(tmp_path) as is_ours:
        assert is_ours


def test_locking_is_skipped_where_the_file_system_has_no_locks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fcntl, "flock", _raising(errno.ENOLCK))
    with atomic.lock_unless_held(tmp_path) as one, atomic.lock_unless_held(tmp_path) as other:
        assert one
        assert other
    with atomic.locked(tmp_path), atomic.locked(tmp_path):
        _write_file(tmp_path / "target")
    assert _names(tmp_path) == ["target"]


def test_directories_are_made_with_their_parents(tmp_path: Path) -> None:
    for _ in range(2):
        atomic.make_directory(tmp_path / "a" / "b" / "c")
        assert (tmp_path / "a/b/c").is_dir()
    (tmp_path / "file").write_bytes(b"")
    (tmp_path / "link").symlink_to(tmp_path / "unmounted")
    for name in ("file", "link"):
        with pytest.raises(StorageError, match=f"{name}: not a directory but a file, or a link"):
            atomic.make_directory(tmp_path / name)


def test_removing_a_tree_does_not_follow_links(tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    _write_directory(elsewhere)
    (tmp_path / "link").symlink_to(elsewhere)
    (tmp_path / "file").write_bytes(b"")
    _write_directory(tmp_path / "directory")
    for name in ("link", "file", "directory", "nothing"):
        atomic.remove_directory(tmp_path / name)
    assert _names(tmp_path) == ["elsewhere"]
    assert (elsewhere / "inner/file").read_bytes() == b"new"
    atomic.remove_file(elsewhere / "inner/file")
    atomic.remove_file(elsewhere / "inner/file")
    assert _names(elsewhere / "inner") == []


def test_an_unreadable_directory_is_an_error_and_not_skipped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "a" / "b" / "file").touch()
    (tmp_path / "link").symlink_to("a")
    assert atomic.files_below(tmp_path) == [tmp_path / "a" / "b" / "file", tmp_path / "link"]
    scan = os.scandir

    def refuse(path: str) -> Any:
        if os.path.basename(path) == "b":
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), path)
        return scan(path)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(PermissionError):
        atomic.files_below(tmp_path)
