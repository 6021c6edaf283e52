"""A cache that nobody may write to: all of it is read, nothing is written, writers say so."""

import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest

import cache_format
from cache_format.errors import StorageError
from cache_format.tools.verify import verify
from cache_format.writer import CacheWriter
from tests.support.faults import Disk, Fault
from tests.support.read_only import bound_by_modes, read_only
from tests.support.sample_cache import (
    assert_same_row,
    build_teacher,
    contents,
    fill,
    sample_shared,
    sample_spec,
)

SPEC = sample_spec()


def test_a_read_only_cache_is_read_without_any_write(root: Path) -> None:
    before = contents(root)
    expected = [row for _, row in cache_format.open(root).iter_rows("train")]
    with read_only(root), Disk(root.parent) as disk:
        cache = cache_format.open(root)
        rows = [row for _, row in cache.iter_rows("train")]
        rows += [row for _, row in cache.iter_rows("validation")]
        assert (cache.teacher_directory() / "config.json").exists()
        assert verify(cache) == []
    for row, given in zip(rows[:5], expected, strict=True):
        assert_same_row(row, given)
    assert disk.changes() == []
    assert contents(root) == before


def test_an_unfinished_read_only_cache_is_read_without_any_write(root: Path) -> None:
    (root / "manifest.json").unlink()
    with Disk(root.parent) as disk:
        cache = cache_format.open(root, allow_incomplete=True)
        assert len(list(cache.iter_rows("validation"))) == 5
        assert verify(cache) == []
    assert disk.changes() == []


_WRITES: list[Callable[[CacheWriter], object]] = [
    lambda writer: CacheWriter.create_or_open(writer.path, SPEC, sample_shared()),
    lambda writer: writer.write_unit(4, [], num_documents=0),
    lambda writer: writer.discard_unit(1),
    lambda writer: writer.publish_manifest(10**6, complete=True),
]


@pytest.mark.parametrize("number", range(len(_WRITES)))
def test_a_writer_on_a_read_only_cache_names_what_it_cannot_write(root: Path, number: int) -> None:
    writer = CacheWriter.create_or_open(root, SPEC, sample_shared())
    before = contents(root)
    with read_only(root), pytest.raises(StorageError) as caught:
        _WRITES[number](writer)
    assert "could not be written: Permission denied." in str(caught.value)
    assert str(caught.value).startswith(str(root))
    assert "Make its directory writable, or work on a copy" in str(caught.value)
    assert contents(root) == before


@pytest.mark.parametrize("number", range(len(_WRITES)))
def test_a_writer_on_a_read_only_mount_says_so(root: Path, number: int) -> None:
    before = contents(root)
    writer = CacheWriter.create_or_open(root, SPEC, sample_shared())
    with (
        Disk(root.parent, Fault(errno.EROFS, 0, lasting=True)),
        pytest.raises(StorageError, match=r"could not be written: Read-only file system\."),
    ):
        _WRITES[number](writer)
    assert contents(root) == before


def test_a_finished_unit_or_teacher_needs_no_write_permission(root: Path) -> None:
    writer = CacheWriter.create_or_open(root, SPEC, sample_shared())
    with read_only(root):
        fill(writer, [0, 1, 2, 3])
        writer.write_attachments(build_teacher)
        assert sorted(writer.finished_units()) == [0, 1, 2, 3]


def test_a_cache_without_read_permission_is_not_called_damaged(root: Path) -> None:
    receipts = root / "receipts"
    receipts.chmod(0)
    try:
        with bound_by_modes():
            cache = cache_format.open(root)
            with pytest.raises(StorageError, match=r"00001\.json: could not be read: Permission"):
                cache.read_row("train", 0)
            assert all("could not be read" in problem.message for problem in verify(cache))
            assert verify(cache)
            assert os.access(root, os.R_OK)
    finally:
        receipts.chmod(0o755)
