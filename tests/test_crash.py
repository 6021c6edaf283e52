"""Stage one is killed with SIGKILL; what it ends with is what it would have been.

The moments are calls that change what is on the disk, and not times: a slow machine is killed in
the same places as a fast one. The runs are forked from a server that has imported everything.
"""

import random
import signal
from multiprocessing.context import ForkServerContext, ForkServerProcess
from pathlib import Path

import pytest

import cache_format
from cache_format.tools.verify import verify
from tests.support.killed_writers import kill_at
from tests.support.tiny import (
    save_tiny_teacher,
    tiny_cache_config,
    tiny_texts,
    write_fineweb_parquet,
)

_NEVER = -1
SLOW = [pytest.mark.slow, pytest.mark.timeout(900)]


def run_stage_one(
    root: Path, out: Path, worker: str | None, moment: int, calls: Path | None
) -> None:
    """What a killed process was doing. Runs in a process of its own.

    Where nothing kills it, the number of calls that might have goes to ``calls``.
    """
    import torch

    from stages.cache_teacher.config import ALL_UNITS
    from stages.cache_teacher.run import cache_teacher
    from stages.cache_teacher.worker_share import WorkerShare

    torch.set_num_threads(1)
    config = tiny_cache_config(root / "teacher", root / "corpus.parquet", documents_per_unit=6)
    units = ALL_UNITS if worker is None else WorkerShare.parse(worker, {})
    num_calls = kill_at(moment)
    cache_teacher(config, out, recipe_toml="# tiny\n", report=lambda _: None, units=units)
    if calls is not None:
        calls.write_text(str(num_calls()))


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Teacher and corpus."""
    path = tmp_path_factory.mktemp("crash")
    save_tiny_teacher(path / "teacher")
    write_fineweb_parquet(path / "corpus.parquet", tiny_texts(60))
    return path


class Runs:
    """Runs of stage one over one teacher and one corpus."""

    def __init__(self, server: ForkServerContext, root: Path) -> None:
        self._server, self._root = server, root
        self._calls = root / "calls"
        whole = self.start(root / "whole", calls=self._calls)
        whole.join()
        assert whole.exitcode == 0
        self.num_moments = 2 * int(self._calls.read_text())
        self.expected = content(root / "whole")
        assert sum(name.startswith("shards/") for name in self.expected) == 10

    def start(
        self,
        out: Path,
        worker: str | None = None,
        moment: int = _NEVER,
        calls: Path | None = None,
    ) -> ForkServerProcess:
        process = self._server.Process(
            target=run_stage_one, args=(self._root, out, worker, moment, calls)
        )
        process.start()
        return process


@pytest.fixture(scope="module")
def runs(fork_server: ForkServerContext, root: Path) -> Runs:
    return Runs(fork_server, root)


def content(cache: Path) -> dict[str, bytes]:
    """Every file of the cache by name."""
    return {
        str(path.relative_to(cache)): path.read_bytes()
        for path in sorted(cache.rglob("*"))
        if path.is_file()
    }


@pytest.mark.parametrize("num_rounds", [3, pytest.param(30, marks=SLOW)])
def test_stage_one_killed_anywhere_ends_with_the_same_bytes(
    runs: Runs, tmp_path: Path, num_rounds: int
) -> None:
    """In every round three processes are killed one after the other, and a fourth is not."""
    rng = random.Random(0)
    num_kills = num_units_found = 0
    for number in range(num_rounds):
        out = tmp_path / str(number)
        for moment in (*rng.sample(range(runs.num_moments), 3), _NEVER):
            process = runs.start(out, moment=moment)
            process.join()
            # What is left to do may have fewer such calls than the moment.
            assert process.exitcode in ((0,) if moment == _NEVER else (0, -signal.SIGKILL))
            if process.exitcode:
                num_kills += 1
                num_units_found += len(list(out.glob("receipts/[0-9]*.json")))
        assert content(out) == runs.expected
        assert verify(cache_format.open(out), lambda *_: None) == []
    # Not vacuous: runs were killed after they had made something, and others went on from there.
    assert num_kills > num_rounds
    assert num_units_found > 0
    print(f"{num_kills} kills in {num_rounds} rounds, {num_units_found} units found by restarts")


@pytest.mark.parametrize("num_rounds", [3, pytest.param(20, marks=SLOW)])
def test_workers_who_share_a_cache_and_are_killed_make_the_same_bytes(
    runs: Runs, tmp_path: Path, num_rounds: int
) -> None:
    """Both begin at once; one that is killed begins again while the other goes on."""
    rng = random.Random(1)
    num_kills = 0
    for number in range(num_rounds):
        out = tmp_path / str(number)
        workers = {
            # A worker makes half of the units.
            name: runs.start(out, name, rng.randrange(runs.num_moments // 2))
            for name in ("0/2", "1/2")
        }
        while workers:
            for name, process in list(workers.items()):
                process.join()
                assert process.exitcode in (0, -signal.SIGKILL)
                del workers[name]
                if process.exitcode:
                    num_kills += 1
                    workers[name] = runs.start(out, name)
        assert content(out) == runs.expected
    assert num_kills >= num_rounds
