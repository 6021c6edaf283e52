"""A real cluster of this machine: the cache is the one that one process makes, whoever dies."""

import os
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from stages.cache_teacher.config import UnitRange
from stages.cache_teacher.engine.ray_engine import RayEngine
from stages.cache_teacher.reporting.progress import CacheProgress
from stages.cache_teacher.run import cache_teacher
from tests.support.corpora import two_corpora
from tests.support.ray_cluster import local_cluster, workers
from tests.support.sample_cache import contents
from tests.support.stage_one_runs import Bench
from tests.support.tiny import tiny_cache_config

pytest.importorskip("ray", reason="Ray is not installed")
pytestmark = [pytest.mark.enable_socket, pytest.mark.timeout(180)]

TWO = RayEngine(num_workers=2)


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    with local_cluster(num_cpus=3):
        yield


def run_on_ray(
    bench: Bench,
    out: str,
    settings: RayEngine = TWO,
    report: Callable[[CacheProgress], None] = lambda _: None,
    **changes: Any,
) -> Any:
    return cache_teacher(
        tiny_cache_config(bench.teacher, bench.corpus, **changes),
        bench.root / out,
        recipe_toml="# a recipe\n",
        report=report,
        engine=settings,
    )


class Killer:
    """Kills a worker each time so many units have been made, as the machine's owner might."""

    def __init__(self, at: set[int]) -> None:
        self.at, self.killed = at, 0
        self.last: CacheProgress | None = None

    def __call__(self, progress: CacheProgress) -> None:
        self.last = progress
        if progress.units_made in self.at:
            self.at.discard(progress.units_made)
            for process in workers("EngineWorker")[:1]:
                os.kill(process, signal.SIGKILL)
                self.killed += 1


@pytest.mark.usefixtures("cluster")
@pytest.mark.parametrize("at", [{9}, pytest.param({2, 9, 14}, marks=pytest.mark.slow)])
def test_killed_ray_workers_do_not_change_the_cache(bench: Bench, at: set[int]) -> None:
    whole = bench.run("whole", documents_per_unit=4)
    assert len(whole.shards) == 20
    killer = Killer(set(at))
    manifest = run_on_ray(bench, "cache", report=killer, documents_per_unit=4)
    assert killer.killed == len(at)
    assert manifest == whole
    found = contents(bench.root / "cache")
    # What a killed worker left half-written stays until the cache is written to again.
    found = {name: digest for name, digest in found.items() if ".tmp-" not in name}
    assert found == contents(bench.root / "whole")
    assert killer.last is not None
    assert killer.last.units_made == 20
    assert killer.last.tokens_done == sum(entry.num_tokens for entry in whole.shards)
    assert killer.last.device_wait_share is not None


@pytest.mark.usefixtures("cluster")
def test_a_cluster_makes_the_same_units_of_several_corpora(bench: Bench) -> None:
    changes: dict[str, Any] = {"corpora": two_corpora(bench.root), "num_tokens": 3_000}
    whole = bench.run("whole", **changes)
    assert {entry.corpus for entry in whole.shards} == {"web", "math"}
    assert run_on_ray(bench, "cache", **changes) == whole
    assert contents(bench.root / "cache") == contents(bench.root / "whole")


@pytest.mark.usefixtures("cluster")
def test_a_cluster_stops_at_the_budget_and_other_engines_can_continue(bench: Bench) -> None:
    sizes = [entry.num_tokens for entry in bench.run("whole").shards]
    budget = sum(sizes[:6]) - 1
    bench.run(num_tokens=sum(sizes[:2]))
    manifest = run_on_ray(bench, "cache", RayEngine(num_workers=1), num_tokens=budget)
    assert [entry.unit for entry in manifest.shards] == list(range(6))
    bench.run()
    assert contents(bench.root / "cache") == contents(bench.root / "whole")


@pytest.mark.usefixtures("cluster")
def test_an_error_raised_by_a_worker_ends_the_run(bench: Bench) -> None:
    teacher = Path(shutil.copytree(bench.teacher, bench.root / "spoilt"))
    weights = load_file(teacher / "model.safetensors")
    del weights["model.norm.weight"]
    save_file(weights, teacher / "model.safetensors", metadata={"format": "pt"})
    bench.teacher = teacher
    with pytest.raises(ValueError, match=r"weights are missing: model\.norm\.weight"):
        run_on_ray(bench, "cache", RayEngine(num_workers=1))
    assert not list(bench.root.glob("cache/shards/*"))


def test_a_unit_range_on_a_cluster_is_refused(bench: Bench) -> None:
    with pytest.raises(ValueError, match="a cluster makes all units"):
        cache_teacher(
            tiny_cache_config(bench.teacher, bench.corpus),
            bench.root / "cache",
            recipe_toml="",
            report=lambda _: None,
            units=UnitRange(first=1),
            engine=TWO,
        )


def test_the_number_of_ray_workers_must_be_positive() -> None:
    with pytest.raises(ValueError, match="workers: must be 1 or more, found 0"):
        RayEngine(num_workers=0)
    assert RayEngine(num_workers=1).address is None
