"""A sweep on a real cluster of this machine: its runs end the same, whoever dies."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from pipeline.ablation.running.ray_places import ray_places
from pipeline.run_report.recorded.recorded_run import is_held
from tests.support import ROOT
from tests.support.command_line import done, run
from tests.support.ray_cluster import local_cluster, workers
from tests.support.sweeps import planned, write_sweep
from tests.support.train_runs import metrics, weights
from tests.support.train_runs import run as train_run

pytest.importorskip("ray", reason="Ray is not installed")
pytestmark = [pytest.mark.enable_socket, pytest.mark.timeout(600)]

_LONG = """
[set]
train_student.max_steps = 40
train_student.save_steps = 1
[variant.base]
"""
_ODD = """
[variant.odd]
train_student.student.num_heads = 3
"""
"""A variant that fails by itself: it stops nothing, and is not tried again."""


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    with local_cluster(num_cpus=2):
        yield


def num_starts(log: Path) -> int:
    """How often the run that prints to ``log`` was started."""
    return sum(line.startswith("$ ") for line in log.read_text().splitlines())


class WorkerKiller(threading.Thread):
    """Kills the worker of a run once ``is_time``, as a machine's owner might."""

    def __init__(self, is_time: Callable[[], bool]) -> None:
        super().__init__(daemon=True)
        self.is_time, self.killed = is_time, 0

    def run(self) -> None:
        while not self.is_time():
            time.sleep(0.01)
        for process in workers("RunWorker"):
            os.kill(process, signal.SIGKILL)
            self.killed += 1


@pytest.mark.usefixtures("cluster")
@pytest.mark.parametrize("other", ["", pytest.param(_ODD, marks=pytest.mark.slow)])
def test_a_run_whose_worker_is_killed_ends_with_the_same_figures(
    tiny_cache: Path, tmp_path: Path, other: str
) -> None:
    sweep, out = write_sweep(tmp_path / "file", _LONG + other), tmp_path / "out"
    place = out / "base/seed=0"
    words = ("ablate", sweep, "--cache", tiny_cache, "--out", out, "--no-trial", "--engine", "ray")
    killer = WorkerKiller(lambda: any(place.glob("checkpoints/step-*")))
    killer.start()
    result = run(*words)
    assert killer.killed == 1
    assert result.exit_code == bool(other)
    assert "base/seed=0: its worker was lost (" in result.stderr
    assert "); it starts again from its newest checkpoint" in result.stderr
    assert "base/seed=0: finished in " in result.stderr
    assert num_starts(out / "base/seed=0.log") == 2
    plan, _ = planned(tmp_path / "alone", _LONG)
    train_run(plan.runs[0].config, tiny_cache, tmp_path / "undisturbed")
    assert metrics(place) == metrics(tmp_path / "undisturbed")
    theirs, ours = weights(tmp_path / "undisturbed"), weights(place)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in ours.items())
    assert not list(out.glob(".tmp-*"))
    if other:
        assert "Error: 1 of 2 runs failed:\n  odd/seed=0: " in result.stderr
        assert num_starts(out / "odd/seed=0.log") == 1
        done("report", out, "--out", tmp_path / "report")
        assert "1 finished, 1 failed" in (tmp_path / "report/report.md").read_text()


@pytest.mark.usefixtures("cluster")
def test_machines_that_do_not_reach_what_is_needed_are_named(tmp_path: Path) -> None:
    absent = tmp_path / "absent"
    places = ray_places(["cpu"], 1, None, tmp_path / "out", [absent], lambda *_: None)
    with pytest.raises(ValueError, match=f"cluster, does not reach {absent} as it is on"), places:
        pass
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_ctrl_c_lets_runs_on_a_cluster_save(tiny_cache: Path, tmp_path: Path) -> None:
    text = "[set]\ntrain_student.max_steps = 100000\ntrain_student.save_steps = 100000\n"
    sweep, out = write_sweep(tmp_path / "file", text), tmp_path / "out"
    words = ["ablate", str(sweep), "--cache", str(tiny_cache), "--out", str(out), "--no-trial"]
    place = out / "base/seed=0"
    with subprocess.Popen(
        [sys.executable, "-m", "pipeline", *words, "--engine", "ray"],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    ) as process:
        while not (place / "metrics.jsonl").exists() or not is_held(place):
            assert process.poll() is None
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        _, said = process.communicate()
    assert process.returncode == 130
    assert "stopping: 1 run saves a checkpoint" in said
    assert not is_held(place)
    assert any(place.glob("checkpoints/step-*"))
