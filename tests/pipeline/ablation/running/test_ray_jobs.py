"""What becomes of a run on a cluster that is only imagined: losses, errors, interruptions."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pipeline.ablation.running.failed_run import failure_text
from pipeline.ablation.running.processes import Job
from pipeline.ablation.running.ray_jobs import MOST_LOSSES, RayJob, RayJobs
from pipeline.ablation.running.ray_places import cpus_of_a_run, ray_places, shared_directory
from pipeline.ablation.running.ray_worker import RunWorker, require_reached


class FakeRayError(Exception):
    """Stands for all that Ray raises; ``cause`` is what the call had raised."""

    def __init__(self, cause: Exception | None = None) -> None:
        super().__init__("the actor died")
        self.cause = cause


class FakeRay:
    """A cluster in which each start of a run comes to what ``outcome`` says; None: it goes on."""

    exceptions = SimpleNamespace(RayError=FakeRayError)

    def __init__(self, outcome: Callable[[int], Any], *, has_room: bool = True) -> None:
        self.outcome, self.has_room = outcome, has_room
        self.num_starts, self.num_killed = 0, 0
        self.asked: list[str] = []

    def remote(self, **options: Any) -> Any:
        self.options = options
        return lambda _: SimpleNamespace(remote=self._spawn)

    def _spawn(self, num_threads: str) -> Any:
        self.num_starts += 1
        number = self.num_starts
        return SimpleNamespace(
            ready=SimpleNamespace(remote=lambda: "ready"),
            run=SimpleNamespace(remote=lambda *_: number),
            stop=SimpleNamespace(remote=lambda: self.asked.append("stop")),
            kill=SimpleNamespace(remote=lambda: self.asked.append("kill")),
        )

    def wait(self, calls: list[Any], timeout: float) -> Any:
        (call,) = calls
        is_done = self.has_room if call == "ready" else self.outcome(call) is not None
        return ([call], []) if is_done else ([], [call])

    def get(self, call: int) -> Any:
        result = self.outcome(call)
        if isinstance(result, Exception):
            raise result
        return result

    def kill(self, actor: Any, no_restart: bool) -> None:
        self.num_killed += 1


class Started:
    """A run that a cluster was given, and all that was said of it."""

    def __init__(self, ray: FakeRay, directory: Path) -> None:
        self.said: list[str] = []
        self.job = Job(
            name="a", arguments=(), out=directory / "sweep/a", log=directory / "sweep/a.log"
        )
        jobs = RayJobs(
            ray=ray,
            num_cpus=2,
            num_gpus=1,
            num_threads="2",
            needed={},
            say=lambda _, text: self.said.append(text),
        )
        self.run: RayJob = jobs(self.job, 0)

    def end(self) -> int:
        for _ in range(100):
            if (exit_code := self.run.exit_code()) is not None:
                return exit_code
        raise AssertionError("it never ends")


@pytest.mark.parametrize("exit_code", [0, 1, 3, -11])
def test_a_run_that_ends_by_itself_is_started_once(tmp_path: Path, exit_code: int) -> None:
    ray = FakeRay(lambda _: exit_code)
    assert Started(ray, tmp_path).end() == exit_code
    assert (ray.num_starts, ray.num_killed) == (1, 1)
    assert (ray.options["num_cpus"], ray.options["num_gpus"]) == (2, 1)


@pytest.mark.parametrize("loss", [FakeRayError(), -9, -15, 143])
def test_a_run_that_others_end_is_started_again(tmp_path: Path, loss: Any) -> None:
    ray = FakeRay(lambda start: loss if start < 3 else 0)
    started = Started(ray, tmp_path)
    assert started.end() == 0
    assert (ray.num_starts, ray.num_killed) == (3, 3)
    assert len(started.said) == 2
    assert started.said[0].endswith("; it starts again from its newest checkpoint")


def test_a_run_that_is_lost_too_often_has_failed(tmp_path: Path) -> None:
    ray = FakeRay(lambda _: FakeRayError())
    started = Started(ray, tmp_path)
    assert started.end() == 1
    assert ray.num_starts == ray.num_killed == MOST_LOSSES
    assert failure_text(started.job.log, 1) == (
        "its worker was lost (the actor died), for the 5th time without a new checkpoint between"
    )


def test_losses_between_which_checkpoints_are_saved_are_not_counted(tmp_path: Path) -> None:
    def outcome(start: int) -> Any:
        (tmp_path / f"sweep/a/checkpoints/step-{start // 2}").mkdir(parents=True, exist_ok=True)
        return FakeRayError() if start < 3 * MOST_LOSSES else 0

    ray = FakeRay(outcome)
    assert Started(ray, tmp_path).end() == 0
    assert ray.num_starts == 3 * MOST_LOSSES


@pytest.mark.parametrize("kind", [ValueError, OSError, RuntimeError])
def test_what_a_machine_refuses_is_the_runs_error(tmp_path: Path, kind: type[Exception]) -> None:
    ray = FakeRay(lambda _: FakeRayError(kind("not mounted")))
    started = Started(ray, tmp_path)
    assert started.end() == 1
    assert ray.num_starts == 1
    assert failure_text(started.job.log, 1) == "not mounted"


def test_a_run_that_is_stopping_is_not_started_again(tmp_path: Path) -> None:
    results: dict[int, Any] = {}
    ray = FakeRay(results.get)
    started = Started(ray, tmp_path)
    assert started.run.exit_code() is None
    started.run.stop()
    assert ray.asked == ["stop"]
    assert started.run.exit_code() is None
    results[1] = FakeRayError()
    assert started.run.exit_code() == 143
    assert ray.num_starts == 1


def test_a_run_without_room_stops_at_once(tmp_path: Path) -> None:
    ray = FakeRay(lambda _: None, has_room=False)
    started = Started(ray, tmp_path)
    started.run.stop()
    assert started.run.exit_code() == 143
    assert (ray.asked, ray.num_killed) == ([], 1)


def test_a_second_interruption_kills_the_process_before_its_actor(tmp_path: Path) -> None:
    ray = FakeRay(lambda _: None)
    started = Started(ray, tmp_path)
    started.run.stop()
    started.run.kill()
    assert ray.asked == ["stop", "kill"]
    assert ray.num_killed == 1
    assert started.run.exit_code() == 143


def test_a_run_that_waits_for_room_says_so_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.ablation.running.ray_jobs._SECONDS_TO_TELL", -1.0)
    started = Started(FakeRay(lambda _: None, has_room=False), tmp_path)
    assert [started.run.exit_code() for _ in range(3)] == [None] * 3
    assert started.said == ["waits for room in the Ray cluster (see `ray status`)"]


@pytest.mark.parametrize(
    ("machines", "has_gpus", "num_runs", "expected"),
    [
        ([{"CPU": 8.0}], False, 1, 8),
        ([{"CPU": 8.0}, {}], False, 3, 2),
        ([{"CPU": 8.0}, {"CPU": 3.0}], False, 3, 3),
        ([{"CPU": 2.0}, {"CPU": 2.0}], False, 4, 1),
        ([{"CPU": 64.0}, {"CPU": 16.0, "GPU": 4.0}, {"CPU": 30.0, "GPU": 4.0}], True, 2, 4),
        ([{"CPU": 2.0, "GPU": 4.0}], True, 2, 1),
    ],
)
def test_runs_share_the_processors(
    machines: list[dict[str, float]], has_gpus: bool, num_runs: int, expected: int
) -> None:
    assert cpus_of_a_run(machines, has_gpus, num_runs) == expected


def test_a_machine_that_does_not_reach_the_sweep_is_refused(tmp_path: Path) -> None:
    require_reached({Path("/sweep"): tmp_path})
    expected = "does not reach /sweep and /cache as it is on the machine of the sweep. Put "
    with pytest.raises(ValueError, match=expected):
        require_reached({Path("/sweep"): tmp_path / "a", Path("/cache"): tmp_path / "b"})


def test_a_worker_that_was_stopped_starts_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    worker = RunWorker("3")
    worker.stop()
    job = Job(name="a", arguments=("--version",), out=tmp_path / "a", log=tmp_path / "a.log")
    assert worker.run(job, {}) == 143
    assert not job.log.exists()


def test_only_what_a_killed_sweep_left_is_removed(tmp_path: Path) -> None:
    (tmp_path / ".tmp-ablate-old/trial").mkdir(parents=True)
    with shared_directory(tmp_path / "out") as first:
        assert [path.name for path in tmp_path.iterdir()] == [first.name]
        with shared_directory(tmp_path / "out") as second:
            assert sorted(tmp_path.iterdir()) == sorted([first, second])
    assert list(tmp_path.iterdir()) == []


class FakeTaskError(FakeRayError):
    """What Ray raises where a task of its own did."""


def on_a_machine(monkeypatch: pytest.MonkeyPatch, answer: Callable[[Any], None]) -> None:
    """A cluster of one machine, which answers so when it is asked what it reaches."""
    node = {"NodeID": "1", "Alive": True, "Resources": {"CPU": 2.0}}
    strategies = SimpleNamespace(NodeAffinitySchedulingStrategy=lambda *_, **__: None)
    ray = SimpleNamespace(
        nodes=lambda: [node],
        remote=lambda **_: lambda _: SimpleNamespace(remote=lambda needed: needed),
        wait=lambda calls, **_: (calls, []),
        get=answer,
        util=SimpleNamespace(scheduling_strategies=strategies),
        exceptions=SimpleNamespace(RayError=FakeRayError, RayTaskError=FakeTaskError),
    )

    @contextmanager
    def cluster(address: str | None) -> Iterator[Any]:
        yield ray

    monkeypatch.setattr("pipeline.ablation.running.ray_places.ray_cluster", cluster)


def test_a_machine_without_this_program_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def answer(_: Any) -> None:
        lines = "The remote function failed to import.\n\nTraceback:\nNo module named 'pipeline'\n"
        raise FakeTaskError(RuntimeError(lines))

    on_a_machine(monkeypatch, answer)
    places = ray_places(["cpu"], 1, None, tmp_path / "out", [], lambda *_: None)
    expected = "cannot run this program: No module named 'pipeline'. Install the version of "
    with pytest.raises(ValueError, match=expected), places:
        pass


def test_no_file_stays_open_in_the_directory_that_is_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    on_a_machine(monkeypatch, lambda needed: require_reached(needed))
    descriptors = Path("/proc/self/fd")
    if not descriptors.is_dir():
        pytest.skip("this system does not list open files in /proc")
    with ray_places(["cpu"], 1, None, tmp_path / "out", [], lambda *_: None) as places:
        assert places.trials is not None
        names = [os.readlink(each) for each in descriptors.iterdir() if each.is_symlink()]
        assert not [name for name in names if name.startswith(f"{places.trials}/")]
    assert list(tmp_path.iterdir()) == []
