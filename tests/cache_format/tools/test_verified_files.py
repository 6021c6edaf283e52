"""A verification that was interrupted goes on; one that has ended leaves nothing behind."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import cache_format
from cache_format.storage.base import Storage, checked_chunks
from cache_format.tools.verify import verify
from tests.support.sample_cache import contents, shard_path


class Reads:
    """The files that are read, and after how many of them a person types Ctrl-C."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.names: list[str] = []
        self.num_before_interrupt = 10**9

        def recorded(storage: Storage, name: str, *arguments: Any) -> Iterator[bytes]:
            if len(self.names) == self.num_before_interrupt:
                raise KeyboardInterrupt
            self.names.append(Path(name).name)
            return checked_chunks(storage, name, *arguments)

        monkeypatch.setattr("cache_format.tools.verify.checked_chunks", recorded)


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> Reads:
    return Reads(monkeypatch)


def interrupted(root: Path, record: Path, reads: Reads) -> list[str]:
    """What a verification reads that is interrupted after three files."""
    reads.num_before_interrupt = 3
    with pytest.raises(KeyboardInterrupt):
        verify(cache_format.open(root), record=record)
    reads.num_before_interrupt = 10**9
    names = list(reads.names)
    reads.names.clear()
    assert len(names) == 3
    return names


def test_an_interrupted_verification_resumes(root: Path, tmp_path: Path, reads: Reads) -> None:
    record, before = tmp_path / "state" / "record", contents(root)
    first = interrupted(root, record, reads)
    seen: list[tuple[int, int]] = []
    assert verify(cache_format.open(root), lambda *now: seen.append(now), record=record) == []
    assert len(reads.names) == 3
    assert not set(reads.names) & set(first)
    assert seen[-1][0] == seen[-1][1]
    assert not record.exists()
    assert contents(root) == before
    reads.names.clear()
    assert verify(cache_format.open(root), record=record) == []
    assert len(reads.names) == 6  # an ended verification is not gone on with


def test_a_file_that_was_changed_is_read_again(root: Path, tmp_path: Path, reads: Reads) -> None:
    first = interrupted(root, tmp_path / "record", reads)
    path = root / "shards" / first[0]
    data = bytearray(path.read_bytes())
    data[100] ^= 1
    path.write_bytes(data)
    os.utime(path, ns=(1, 1))
    (problem,) = verify(cache_format.open(root), record=tmp_path / "record")
    assert problem.path == path
    assert not (tmp_path / "record").exists()


def test_a_replaced_file_with_the_same_mtime_is_read_again(
    root: Path, tmp_path: Path, reads: Reads
) -> None:
    first = interrupted(root, tmp_path / "record", reads)
    path = root / "shards" / first[0]
    before = path.stat()
    (tmp_path / "new").write_bytes(bytes(before.st_size))
    os.utime(tmp_path / "new", ns=(before.st_atime_ns, before.st_mtime_ns))
    (tmp_path / "new").replace(path)
    (problem,) = verify(cache_format.open(root), record=tmp_path / "record")
    assert problem.path == path


def test_a_bad_file_is_read_again_and_named_again(root: Path, tmp_path: Path, reads: Reads) -> None:
    path = shard_path(root, 0)
    path.write_bytes(bytes(path.stat().st_size))
    interrupted(root, tmp_path / "record", reads)
    (problem,) = verify(cache_format.open(root), record=tmp_path / "record")
    assert problem.path == path
    assert path.name in reads.names


def test_invalid_record_lines_are_skipped_and_the_others_used(
    root: Path, tmp_path: Path, reads: Reads
) -> None:
    record = tmp_path / "record"
    interrupted(root, record, reads)
    lines = record.read_bytes().splitlines()
    nonsense = [b"\xff", b"{}", b"1"]
    record.write_bytes(b"\n".join([*lines[:2], *nonsense, *lines[2:-1], lines[-1][:20]]))
    reads.num_before_interrupt = 1
    reads.names.clear()
    with pytest.raises(KeyboardInterrupt):
        verify(cache_format.open(root), record=record)
    assert len(reads.names) == 1
    reads.num_before_interrupt = 10**9
    reads.names.clear()
    assert verify(cache_format.open(root), record=record) == []
    assert len(reads.names) == 3


@pytest.mark.parametrize("cut", [0, 1, 2])
def test_a_record_cut_at_its_start_begins_the_verification_anew(
    root: Path, tmp_path: Path, cut: int
) -> None:
    (tmp_path / "record").write_bytes(b'\n["/'[:cut])
    assert verify(cache_format.open(root), record=tmp_path / "record") == []
    assert not (tmp_path / "record").exists()


def test_a_file_that_is_no_record_is_not_overwritten(root: Path) -> None:
    before = contents(root)
    with pytest.raises(ValueError, match=r"manifest\.json: exists, but is not a record"):
        verify(cache_format.open(root), record=root / "manifest.json")
    assert contents(root) == before


@pytest.mark.parametrize("num_threads", [1, 2, 7])
def test_threads_find_the_same_in_the_same_order(root: Path, num_threads: int) -> None:
    for unit in (3, 1):
        path = shard_path(root, unit)
        path.write_bytes(bytes(path.stat().st_size))
    seen: list[tuple[int, int]] = []
    problems = verify(
        cache_format.open(root), lambda *now: seen.append(now), num_threads=num_threads
    )
    assert [problem.path for problem in problems] == [shard_path(root, 1), shard_path(root, 3)]
    assert seen == sorted(seen)
    assert seen[-1][0] == seen[-1][1]
