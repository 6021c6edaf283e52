"""Every call that reads or changes the disk fails: named, nothing is lost, and made good again."""

import errno
import math
import os
import shutil
from collections.abc import Callable, Iterator
from functools import cache
from itertools import count
from pathlib import Path

import pytest

import cache_format
from cache_format.codec.row_codec import Row
from cache_format.errors import ForeignDirectoryError, NoSpaceError, StorageError
from cache_format.metadata.receipt import ShardEntry
from cache_format.metadata.spec import Split
from cache_format.reader import Cache
from cache_format.tables.shared_files import files_of
from cache_format.tools.verify import verify
from cache_format.writer import CacheWriter
from tests.support.faults import CHANGING, READING, REMOVING, Disk, Fault
from tests.support.sample_cache import (
    assert_same_row,
    build_teacher,
    contents,
    fill,
    hidden_targets,
    pca_sketch,
    sample_row,
    sample_shared,
    sample_spec,
    shard_path,
    write_sample_cache,
)

SPEC = sample_spec(targets=hidden_targets(), sketch=pca_sketch())
"""With every file that a cache may have."""
FULL = {errno.ENOSPC, errno.EDQUOT}

FAULTS = {
    "full": Fault(errno.ENOSPC, 0),
    "failing": Fault(errno.EIO, 0),
    "full for good": Fault(errno.ENOSPC, 0, CHANGING - REMOVING - {"fsync"}, lasting=True),
    "read-only for good": Fault(errno.EROFS, 0, lasting=True),
    "quota": Fault(errno.EDQUOT, 0, frozenset({"create", "write"})),
    "forbidden": Fault(errno.EACCES, 0, frozenset({"create", "mkdir", "rename"})),
    "full in the middle of a write": Fault(errno.ENOSPC, 0, frozenset({"write"}), short=True),
    "too large": Fault(errno.EFBIG, 0, frozenset({"write"}), short=True),
}


def _write(path: Path) -> None:
    write_sample_cache(path, SPEC)


def _open(path: Path) -> CacheWriter:
    return CacheWriter.create_or_open(path, SPEC, sample_shared(SPEC))


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A complete cache."""
    root = tmp_path_factory.mktemp("faults") / "whole"
    _write(root)
    return root


def _error_of(run: Callable[[Path], object], path: Path) -> StorageError | None:
    try:
        run(path)
    except StorageError as error:
        return error
    return None


def _attempt(run: Callable[[Path], object], path: Path, fault: Fault) -> Disk | None:
    """Run under ``fault``; None once there are fewer calls than it waits for.

    Whatever was swallowed cannot have been anything but the removal of something half-written.
    """
    num_descriptors = len(os.listdir("/proc/self/fd"))
    with Disk(path.parent, fault) as disk:
        error = _error_of(run, path)
    if error is None:
        assert {call.name for call in disk.failed} <= REMOVING
        assert all(".tmp-" in str(call.path) for call in disk.failed)
    else:
        assert disk.failed, error
        assert isinstance(error, NoSpaceError) == (fault.number in FULL)
        assert str(error).startswith(str(path))
        assert os.strerror(fault.number) in str(error) or fault.number in FULL
        assert "again" in str(error)
    assert len(os.listdir("/proc/self/fd")) == num_descriptors
    return disk if disk.failed else None


def _attempts_with_faults(
    run: Callable[[Path], object],
    path: Path,
    fault: Fault,
    start: Callable[[Path], object],
    step: int = 1,
) -> Iterator[Disk]:
    """Attempts with the fault at every ``step``-th moment, each after ``start``.

    ``path`` is left as it is.
    """
    for moment in count(0, step):
        shutil.rmtree(path, ignore_errors=True)
        start(path)
        disk = _attempt(run, path, fault._replace(first=moment))
        if disk is None:
            break
        yield disk


def _leftovers(path: Path) -> list[Path]:
    return list(path.parent.rglob(".tmp-*"))


def _assert_nothing_half_published(path: Path, whole: Path) -> None:
    """What there is of a cache is a part of the whole one, and whole in itself."""
    try:
        cache = cache_format.open(path, allow_incomplete=True)
    except ForeignDirectoryError:
        assert not any((path / name).exists() for name in ("spec.json", "manifest.json", "shards"))
        return
    for problem in verify(cache):
        is_early = not cache.manifest.shards and any(
            f"{name}: missing" in problem.message for name in files_of(SPEC)
        )
        assert is_early or not problem.is_damage
    expected = _expected(whole)
    for entry, rows in _rows_by_unit(cache):
        assert len(rows) == entry.num_rows
        for index, row in enumerate(rows):
            assert_same_row(row, expected[entry.unit, index])


@cache
def _expected(whole: Path) -> dict[tuple[int, int], Row]:
    """Every row by unit and number."""
    return {
        (entry.unit, index): row
        for entry, rows in _rows_by_unit(cache_format.open(whole))
        for index, row in enumerate(rows)
    }


def _rows_by_unit(cache: Cache) -> Iterator[tuple[ShardEntry, list[Row]]]:
    splits: tuple[Split, Split] = ("train", "validation")
    for split in splits:
        rows = [row for _, row in cache.iter_rows(split)]
        for entry in cache.shards(split):
            yield entry, rows[: entry.num_rows]
            del rows[: entry.num_rows]


@pytest.mark.parametrize("step", [3, pytest.param(1, marks=pytest.mark.slow)])
@pytest.mark.parametrize("kind", FAULTS)
def test_a_writer_whose_disk_fails_at_any_call_leaves_a_resumable_cache(
    kind: str, step: int, whole: Path, tmp_path: Path
) -> None:
    """At every third call, and at each of them in the slow test."""
    fault, path, num_moments = FAULTS[kind], tmp_path / "cache", 0
    wanted = contents(whole)
    for disk in _attempts_with_faults(_write, path, fault, lambda path: None, step):
        num_moments += 1
        if not any(call.name in REMOVING for call in disk.failed):
            assert _leftovers(path) == []
        _assert_nothing_half_published(path, whole)
        with Disk(tmp_path):
            _write(path)
        assert contents(path) == wanted
    with Disk(tmp_path) as disk:
        _write(tmp_path / "other")
    num_calls = sum(call.name in fault.calls for call in disk.calls)
    assert num_moments == math.ceil(num_calls / step)
    assert num_calls > 10


def _extend(path: Path) -> None:
    writer = _open(path)
    writer.write_unit(4, [sample_row(0, SPEC)], num_documents=1)
    writer.publish_manifest(num_tokens_requested=150, complete=True)


def _repair(path: Path) -> None:
    writer = _open(path)
    fill(writer, [1])
    writer.write_attachments(build_teacher)
    writer.publish_manifest(num_tokens_requested=120, complete=True)


@pytest.mark.parametrize("kind", ["failing", "read-only for good"])
def test_a_complete_cache_stays_complete_while_an_extension_fails(
    kind: str, whole: Path, tmp_path: Path
) -> None:
    path, fault, num_moments = tmp_path / "cache", FAULTS[kind], 0
    extended = tmp_path / "extended"
    shutil.copytree(whole, extended)
    _extend(extended)
    for _ in _attempts_with_faults(_extend, path, fault, lambda path: shutil.copytree(whole, path)):
        num_moments += 1
        assert cache_format.open(path).manifest.complete
        _assert_nothing_half_published(path, extended)
        with Disk(tmp_path):
            _extend(path)
        assert contents(path) == contents(extended)
    assert num_moments > 15


def test_a_repair_whose_disk_fails_at_any_call_can_be_repeated(whole: Path, tmp_path: Path) -> None:
    path, num_moments = tmp_path / "cache", 0

    def damage(path: Path) -> None:
        shutil.copytree(whole, path)
        shard_path(path, 1).write_bytes(b"cut")
        (path / "teacher/config.json").unlink()
        (path / "projection.bin").write_bytes(b"cut")

    for _ in _attempts_with_faults(_repair, path, FAULTS["failing"], damage):
        num_moments += 1
        with Disk(tmp_path):
            _repair(path)
        assert contents(path) == contents(whole)
    assert num_moments > 30


def _read_everything(path: Path) -> list[str]:
    """The problems that ``verify`` finds, after all has been read."""
    cache = cache_format.open(path)
    list(cache.iter_rows("train"))
    list(cache.iter_rows("validation"))
    cache.teacher_directory()
    assert cache.projection is not None
    return [problem.message for problem in verify(cache)]


def _read_unfinished(path: Path) -> list[str]:
    list(cache_format.open(path, allow_incomplete=True).iter_rows("train"))
    return []


@pytest.mark.parametrize("number", [errno.EIO, errno.EACCES])
@pytest.mark.parametrize("read", [_read_everything, _read_unfinished])
def test_a_failed_read_does_not_call_a_file_damaged(
    read: Callable[[Path], list[str]], number: int, whole: Path, tmp_path: Path
) -> None:
    path, moment, num_by_verify = tmp_path / "cache", 0, 0
    shutil.copytree(whole, path)
    if read is _read_unfinished:
        (path / "manifest.json").unlink()
    while True:
        problems: list[str] = []
        with Disk(tmp_path, Fault(number, moment, READING)) as disk:
            try:
                problems = read(path)
            except StorageError as error:
                problems = [str(error)]
            else:
                num_by_verify += len(problems)
        if not disk.failed:
            assert problems == []
            break
        assert len(problems) == 1, disk.failed
        assert problems[0].startswith(f"{path}")
        assert f"could not be read: {os.strerror(number)}" in problems[0]
        assert "then try again" in problems[0]
        assert not any(word in problems[0] for word in ("damaged", "missing", "Delete"))
        moment += 1
    assert moment > 20
    assert (num_by_verify > 20) == (read is _read_everything)
    assert disk.changes() == []


@pytest.mark.parametrize("is_there", [True, False])
def test_a_writer_that_cannot_read_treats_no_file_as_missing(
    is_there: bool, whole: Path, tmp_path: Path
) -> None:
    path, moment = tmp_path / "cache", 0
    if is_there:
        shutil.copytree(whole, path)
    while True:
        with Disk(tmp_path, Fault(errno.EIO, moment, READING)) as disk:
            error = _error_of(_write, path)
        if error is None:
            assert all(".tmp-" in str(call.path) for call in disk.failed)
        else:
            assert str(error).startswith(str(path))
            assert "Input/output error" in str(error)
        assert _leftovers(path) == []
        if is_there:
            assert contents(path) == contents(whole)
        else:
            if moment % 4 == 0:
                with Disk(tmp_path):
                    _write(path)
                assert contents(path) == contents(whole)
            shutil.rmtree(path, ignore_errors=True)
        if not disk.failed:
            break
        moment += 1
    assert moment > 20
