"""The clock runs backwards and files are from 1970 or from the future: nothing depends on it."""

import os
import time
from collections.abc import Iterator
from itertools import count
from pathlib import Path

import pytest

import cache_format
from cache_format.errors import CorruptShardError
from cache_format.storage.atomic import atomic_file, remove_leftovers
from cache_format.tools.verify import verify
from cache_format.writer import CacheWriter
from tests.support.sample_cache import (
    assert_same_row,
    contents,
    fill,
    sample_shared,
    sample_spec,
    shard_path,
    write_sample_cache,
)

SPEC = sample_spec()
LONG_AGO, FAR_AHEAD = 0, 2**33  # seconds: 1970 and 2242


@pytest.fixture
def clock_running_backwards(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every look at any clock is an hour earlier than the last."""
    hours = count(1)
    for name in ("time", "monotonic", "perf_counter", "process_time"):
        monkeypatch.setattr(time, name, lambda: 1e9 - 3600.0 * next(hours))
        monkeypatch.setattr(time, f"{name}_ns", lambda: 10**18 - 3600 * 10**9 * next(hours))


def _everything(root: Path) -> Iterator[Path]:
    yield from sorted(root.rglob("*"))
    yield root


def _set_times(root: Path) -> None:
    for number, path in enumerate(_everything(root)):
        seconds = FAR_AHEAD if number % 2 else LONG_AGO
        os.utime(path, (seconds, seconds))


@pytest.mark.usefixtures("clock_running_backwards")
def test_a_cache_written_while_the_clock_runs_backwards_is_whole(
    tmp_path: Path, root: Path
) -> None:
    path = tmp_path / "other"
    writer = CacheWriter.create_or_open(path, SPEC, sample_shared())
    for unit in (2, 0):
        fill(writer, [unit])
        writer.publish_manifest(num_tokens_requested=120, complete=False)
        _set_times(path)
    write_sample_cache(path)
    assert contents(path) == contents(root)
    assert verify(cache_format.open(path)) == []


@pytest.mark.usefixtures("clock_running_backwards")
def test_files_of_any_age_are_read_and_left_alone(root: Path) -> None:
    before = contents(root)
    expected = [row for _, row in cache_format.open(root).iter_rows("train")]
    _set_times(root)
    cache = cache_format.open(root)
    for (_, row), given in zip(cache.iter_rows("train"), expected, strict=True):
        assert_same_row(row, given)
    assert verify(cache) == []
    ages = {path: path.stat().st_mtime_ns for path in _everything(root / "shards")}
    write_sample_cache(root)
    assert contents(root) == before
    assert {path: path.stat().st_mtime_ns for path in _everything(root / "shards")} == ages


@pytest.mark.usefixtures("clock_running_backwards")
@pytest.mark.parametrize("seconds", [LONG_AGO, FAR_AHEAD])
def test_a_damaged_shard_of_any_age_is_found(root: Path, seconds: int) -> None:
    """Also where its age is what it was when the same bytes were read and found whole."""
    path = shard_path(root, 1)
    os.utime(path, (seconds, seconds))
    cache = cache_format.open(root)
    assert verify(cache) == []
    cache.read_row("train", 0)
    data = bytearray(path.read_bytes())
    for position in range(len(data) - 1, 0, -len(data) // 50):
        data[position] ^= 1
    path.write_bytes(data)
    os.utime(path, (seconds, seconds))
    assert [problem.path for problem in verify(cache)] == [path]
    with pytest.raises(CorruptShardError):
        list(cache_format.open(root).iter_rows("train"))


@pytest.mark.usefixtures("clock_running_backwards")
@pytest.mark.parametrize("seconds", [LONG_AGO, FAR_AHEAD])
def test_leftovers_of_any_age_are_removed(root: Path, seconds: int) -> None:
    before = contents(root)
    for directory in (root, root / "shards", root / "receipts"):
        for path in (directory / ".tmp-file", directory / ".tmp-directory"):
            path.mkdir() if path.name.endswith("directory") else path.write_bytes(b"half")
            os.utime(path, (seconds, seconds))
    CacheWriter.create_or_open(root, SPEC, sample_shared())
    assert contents(root) == before
    assert not list(root.rglob(".tmp-*"))


@pytest.mark.usefixtures("clock_running_backwards")
def test_files_being_written_stay_whatever_their_age(tmp_path: Path) -> None:
    with atomic_file(tmp_path / "target") as sink:
        sink.write(b"new")
        (half,) = tmp_path.iterdir()
        os.utime(half, (LONG_AGO, LONG_AGO))
        remove_leftovers(tmp_path)
        assert half.exists()
    assert (tmp_path / "target").read_bytes() == b"new"
