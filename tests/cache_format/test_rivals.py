"""Two and four processes at work on one cache, one of them killed: every unit is there once."""

import subprocess
import sys
from pathlib import Path

import pytest

import cache_format
from cache_format.writer import CacheWriter
from tests.support import ROOT
from tests.support.sample_cache import contents, sample_shared, sample_spec


def _race(directory: Path, num_processes: int, num_rounds: int, kind: str) -> None:
    arguments = [str(directory), str(num_processes), str(num_rounds), kind]
    done = subprocess.run(
        [sys.executable, "-m", "tests.support.rival_writers", *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) == num_rounds // 2
    print(f"{kind} bytes: {done.stdout.strip()} killed in {num_rounds} rounds")


@pytest.mark.parametrize("kind", ["same", "different"])
@pytest.mark.parametrize("num_processes", [2, 4])
def test_processes_racing_on_one_cache_leave_it_whole(
    num_processes: int, kind: str, tmp_path: Path
) -> None:
    _race(tmp_path, num_processes, 16 // num_processes, kind)


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("kind", ["same", "different"])
@pytest.mark.parametrize("num_processes", [2, 4])
def test_processes_racing_on_many_caches_leave_them_whole(
    num_processes: int, kind: str, tmp_path: Path
) -> None:
    _race(tmp_path, num_processes, 100, kind)


def test_shards_of_killed_writers_are_removed_once_their_unit_is_finished(root: Path) -> None:
    """A process whose bytes differ, killed between its shard and the receipt that it lost."""
    before = contents(root)
    (root / "shards/00001-0123456789abcdef.arrow").write_bytes(b"of a finished unit")
    other = root / "shards/00007-0123456789abcdef.arrow"
    other.write_bytes(b"of a unit that somebody may be about to finish")
    CacheWriter.create_or_open(root, sample_spec(), sample_shared()).publish_manifest(
        120, complete=True
    )
    assert other.exists()
    other.unlink()
    assert contents(root) == before


def test_a_slower_process_does_not_overwrite_a_complete_manifest(root: Path) -> None:
    before = contents(root)
    writer = CacheWriter.create_or_open(root, sample_spec(), sample_shared())
    writer.write_unit(4, [], num_documents=0)
    manifest = writer.publish_manifest(1000, complete=False)
    assert manifest == cache_format.open(root).manifest
    assert contents(root)["manifest.json"] == before["manifest.json"]
    assert [entry.unit for entry in writer.publish_manifest(1000, complete=True).shards][-1] == 4
