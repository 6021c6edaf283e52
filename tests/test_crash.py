"""Stage one is killed with SIGKILL at random moments; what it ends with is what it would have been.

The runs are forked from a server that has imported everything, so that a start costs milliseconds
and twenty kills land on the work and not on the imports.
"""

import multiprocessing
import os
import random
import signal
import time
from collections.abc import Iterator
from contextlib import suppress
from multiprocessing.context import ForkServerContext, ForkServerProcess
from pathlib import Path

import pytest

import cache_format
from tests.tiny import save_tiny_teacher, tiny_config, tiny_texts, write_fineweb_parquet

NUM_KILLS = 24
_PRELOADED = [
    "cache_format.reader",
    "stages.cache_teacher.run",
    "tests.test_crash",
    "transformers.models.auto.modeling_auto",
    "transformers.models.auto.tokenization_auto",
    "transformers.models.qwen2.modeling_qwen2",
    "transformers.models.qwen2.tokenization_qwen2",
]


def run_stage_one(root: Path, out: Path, worker: str | None = None) -> None:
    """What a killed process was doing. Runs in a process of its own."""
    import torch

    from stages.cache_teacher.config import ALL_UNITS
    from stages.cache_teacher.engine.workers import WorkerShare
    from stages.cache_teacher.run import cache_teacher

    torch.set_num_threads(1)
    config = tiny_config(root / "teacher", root / "corpus.parquet", documents_per_unit=6)
    units = ALL_UNITS if worker is None else WorkerShare.parse(worker, {})
    cache_teacher(config, out, recipe_toml="# tiny\n", report=lambda _: None, units=units)


@pytest.fixture(scope="module")
def server() -> Iterator[ForkServerContext]:
    """Forks processes that have imported everything already."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(Path(__file__).parents[1]))
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(_PRELOADED)
        yield context


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Teacher and corpus."""
    path = tmp_path_factory.mktemp("crash")
    save_tiny_teacher(path / "teacher")
    write_fineweb_parquet(path / "corpus.parquet", tiny_texts(60))
    return path


def start(
    server: ForkServerContext, root: Path, out: Path, worker: str | None = None
) -> ForkServerProcess:
    process = server.Process(target=run_stage_one, args=(root, out, worker))
    process.start()
    return process


def content(cache: Path) -> dict[str, bytes]:
    """Every file of the cache by name."""
    return {
        str(path.relative_to(cache)): path.read_bytes()
        for path in sorted(cache.rglob("*"))
        if path.is_file()
    }


@pytest.mark.timeout(300)
def test_stage_one_killed_anywhere_ends_with_the_same_bytes(
    server: ForkServerContext, root: Path
) -> None:
    whole = start(server, root, root / "whole")
    whole.join()
    assert whole.exitcode == 0
    started = time.monotonic()
    again = start(server, root, root / "timed")
    again.join()
    seconds = time.monotonic() - started
    expected = content(root / "whole")
    assert content(root / "timed") == expected
    assert sum(name.startswith("shards/") for name in expected) == 10

    rng = random.Random(0)
    num_kills = num_units_found = num_rounds = 0
    while num_kills < NUM_KILLS:
        out = root / f"killed-{num_rounds}"
        num_rounds += 1
        while True:
            process = start(server, root, out)
            process.join(rng.uniform(0, seconds))
            if process.exitcode is not None:
                assert process.exitcode == 0
                break
            assert process.pid is not None
            with suppress(ProcessLookupError):
                os.kill(process.pid, signal.SIGKILL)
            process.join()
            if process.exitcode == 0:  # it had ended before the signal came
                break
            assert process.exitcode == -signal.SIGKILL
            num_kills += 1
            num_units_found += len(list(out.glob("receipts/[0-9]*.json")))
        assert content(out) == expected
        assert cache_format.open(out).verify(lambda *_: None) == []
    # Not vacuous: runs were killed after they had made something, and others went on from there.
    assert num_units_found > 0
    print(f"{num_kills} kills in {num_rounds} rounds, {num_units_found} units found by restarts")


@pytest.mark.timeout(300)
def test_workers_who_share_a_cache_and_are_killed_make_the_same_bytes(
    server: ForkServerContext, root: Path
) -> None:
    whole = start(server, root, root / "alone")
    whole.join()
    expected = content(root / "alone")
    rng = random.Random(1)
    num_kills = num_rounds = 0
    while num_kills < 10:
        out = root / f"shared-{num_rounds}"
        num_rounds += 1
        workers = {name: start(server, root, out, name) for name in ("0/2", "1/2")}
        while workers:
            name = rng.choice(sorted(workers))
            process = workers[name]
            process.join(rng.uniform(0, 0.8))
            if process.exitcode is None and num_kills < 12:
                assert process.pid is not None
                with suppress(ProcessLookupError):
                    os.kill(process.pid, signal.SIGKILL)
            process.join()
            assert process.exitcode in (0, -signal.SIGKILL)
            if process.exitcode == 0:
                del workers[name]
            else:
                num_kills += 1
                workers[name] = start(server, root, out, name)
        assert content(out) == expected
    print(f"{num_kills} kills in {num_rounds} rounds")
