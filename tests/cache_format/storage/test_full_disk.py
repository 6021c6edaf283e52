"""A disk that is really full: of bytes, of files, and behind the limit of a process."""

import errno
import resource
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

import cache_format
from cache_format.errors import NoSpaceError, StorageError
from cache_format.tools.verify import verify
from tests.support.sample_cache import contents, write_sample_cache

_PAGE_BYTES = 4096


@contextmanager
def _small_disk(directory: Path, limit: str) -> Iterator[None]:
    """Mount a file system with ``limit`` at ``directory``; skips where that may not be done."""
    directory.mkdir()
    arguments = ["mount", "-t", "tmpfs", "-o", limit, "tmpfs", str(directory)]
    try:
        done = subprocess.run(arguments, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        pytest.skip("there is no program mount: a disk that is really full cannot be had")
    if done.returncode != 0:
        pytest.skip(f"a disk that is really full cannot be had: {done.stderr.strip()}")
    try:
        yield
    finally:
        subprocess.run(["umount", str(directory)], check=True)


@pytest.mark.parametrize(("limit", "step"), [("size", _PAGE_BYTES), ("nr_inodes", 1)])
def test_a_full_disk_at_any_size_leaves_a_resumable_cache(
    limit: str, step: int, tmp_path: Path
) -> None:
    write_sample_cache(tmp_path / "whole")
    expected = contents(tmp_path / "whole")
    num_full = 0
    for number in range(2, 100):
        disk = tmp_path / f"{limit}-{number}"
        with _small_disk(disk, f"{limit}={number * step}"):
            try:
                write_sample_cache(disk / "cache")
            except NoSpaceError:
                num_full += 1
                assert not list(disk.rglob(".tmp-*"))
                remount = ["mount", "-o", f"remount,{limit}={1000 * step}", str(disk)]
                subprocess.run(remount, check=True)
                write_sample_cache(disk / "cache")
                assert contents(disk / "cache") == expected
            else:
                break
    assert num_full > 10


@pytest.mark.parametrize("num_bytes", [0, 100, 700, 1500])
def test_a_file_size_limit_is_reported_as_an_error(num_bytes: int, tmp_path: Path) -> None:
    write_sample_cache(tmp_path / "whole")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, limits[1]))
    try:
        with pytest.raises(StorageError, match="could not be written: File too large") as caught:
            write_sample_cache(tmp_path / "cache")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert isinstance(caught.value.__cause__, OSError)
    assert caught.value.__cause__.errno == errno.EFBIG
    assert not list(tmp_path.rglob(".tmp-*"))
    write_sample_cache(tmp_path / "cache")
    assert contents(tmp_path / "cache") == contents(tmp_path / "whole")
    assert verify(cache_format.open(tmp_path / "cache")) == []
