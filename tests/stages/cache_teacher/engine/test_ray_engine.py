"""What the engine does about workers and units that fail: a cluster that is only imagined."""

import signal
import socket
import sys
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from stages.cache_teacher.engine.ray_engine import RayEngine
from stages.cache_teacher.engine.worker import MadeUnit
from stages.cache_teacher.reporting.device_use import DeviceUse

Outcome = Callable[[int, int], Any]
"""Of a unit (−1: loading), and how often it was asked for."""


class FakeRayError(Exception):
    """Stands for all that Ray raises; ``cause`` is what the call had raised."""

    def __init__(self, cause: Exception | None = None) -> None:
        super().__init__("the actor died")
        self.cause = cause


class FakeCall:
    """A call that has not ended."""

    def __init__(self, unit: int) -> None:
        self.unit = unit


class FakeRay:
    """Calls end when they are waited for, as ``outcome`` has it."""

    exceptions = SimpleNamespace(RayError=FakeRayError)

    def __init__(self, outcome: Outcome, machines: list[dict[str, float]] | None = None) -> None:
        self.outcome = outcome
        self.machines = machines or [{"CPU": 4.0}]
        self.asked: list[int] = []
        self.num_hired = self.num_killed = 0
        self.most_open = 0

    def is_initialized(self) -> bool:
        return True

    def cluster_resources(self) -> dict[str, float]:
        return {name: sum(node.get(name, 0.0) for node in self.machines) for name in ("CPU", "GPU")}

    def nodes(self) -> list[dict[str, Any]]:
        gone = {"Alive": False, "Resources": {"CPU": 64.0, "GPU": 8.0}}
        return [gone, *({"Alive": True, "Resources": node} for node in self.machines)]

    def put(self, job: Any) -> Any:
        return job

    def remote(self, **options: Any) -> Any:
        def spawn(job: Any) -> Any:
            self.num_hired += 1
            return SimpleNamespace(
                load=SimpleNamespace(remote=lambda: FakeCall(-1)),
                make=SimpleNamespace(remote=FakeCall),
            )

        return lambda _: SimpleNamespace(remote=spawn)

    def wait(self, calls: list[Any], **_: Any) -> Any:
        self.most_open = max(self.most_open, sum(call.unit >= 0 for call in calls))
        return calls[:1], calls[1:]

    def get(self, call: Any) -> Any:
        self.asked.append(call.unit)
        result = self.outcome(call.unit, self.asked.count(call.unit))
        if isinstance(result, Exception):
            raise result
        return result

    def kill(self, handle: Any, no_restart: bool) -> None:
        self.num_killed += 1


class FakeQueue:
    """Ten units."""

    def __init__(self) -> None:
        self.units = list(range(10))

    def take(self) -> int | None:
        return self.units.pop(0) if self.units else None

    def is_empty(self) -> bool:
        return not self.units


def made(unit: int) -> Any:
    entry: Any = SimpleNamespace(unit=unit, corpus_position="")
    return MadeUnit(entry=entry, use=DeviceUse(busy_seconds=1.0), peak_operations=None)


def run(
    monkeypatch: pytest.MonkeyPatch,
    outcome: Outcome,
    num_workers: int | None = 2,
    machines: list[dict[str, float]] | None = None,
) -> Any:
    ray = FakeRay(outcome, machines)
    monkeypatch.setitem(sys.modules, "ray", ray)
    finished: list[int] = []
    progress: Any = SimpleNamespace(
        **dict.fromkeys(("show", "know_device", "used", "begin_unit", "made_unit"), lambda *_: None)
    )
    job: Any = None
    queue: Any = FakeQueue()
    try:
        RayEngine(num_workers=num_workers).make_units(
            job, queue, progress, lambda entry: finished.append(entry.unit)
        )
    finally:
        assert ray.num_killed == ray.num_hired  # nobody is left behind
    return SimpleNamespace(ray=ray, finished=finished)


def test_every_unit_is_made_once(monkeypatch: pytest.MonkeyPatch) -> None:
    found = run(monkeypatch, lambda unit, _: made(unit))
    assert sorted(found.finished) == list(range(10))
    assert found.ray.num_hired == 2
    assert found.ray.most_open == 6


def test_units_of_a_dead_worker_are_made_by_others(monkeypatch: pytest.MonkeyPatch) -> None:
    def outcome(unit: int, times: int) -> Any:
        return FakeRayError() if unit in (0, 5) and times < 3 else made(unit)

    found = run(monkeypatch, outcome)
    assert sorted(found.finished) == list(range(10))
    assert found.ray.num_hired == 2 + 4


def test_a_unit_that_kills_every_worker_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    def outcome(unit: int, times: int) -> Any:
        return FakeRayError(RuntimeError("an illegal access")) if unit == 3 else made(unit)

    with pytest.raises(RuntimeError, match=r"unit 3: 5 workers have failed .* an illegal access"):
        run(monkeypatch, outcome, num_workers=1)


def test_workers_that_never_start_are_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(RuntimeError, match="11 workers have died in a row"):
        run(monkeypatch, lambda unit, _: FakeRayError())


@pytest.mark.parametrize("unit", [-1, 4])
def test_a_non_retryable_failure_is_raised_at_once(
    monkeypatch: pytest.MonkeyPatch, unit: int
) -> None:
    tries = []

    def outcome(asked: int, times: int) -> Any:
        if asked != unit:
            return made(asked)
        tries.append(times)
        return FakeRayError(ValueError("the document is no text"))

    with pytest.raises(ValueError, match="the document is no text"):
        run(monkeypatch, outcome)
    assert tries == [1]


GPUS: dict[str, float] = {"CPU": 16.0, "GPU": 4.0}


@pytest.mark.parametrize(
    ("machines", "num_workers", "expected"),
    [
        ([{"CPU": 3.0}], 4, r"4 workers need 1 CPU each.* has 3 CPUs, .*use 3 workers,"),
        ([GPUS, GPUS], 9, r"1 CPU and 1 GPU each.* has 32 CPUs and 8 GPUs.*use 8 workers,"),
        ([GPUS, {"CPU": 64.0}], 5, r"has 80 CPUs and 4 GPUs, enough for 4"),
        ([{"CPU": 2.0, "GPU": 4.0}], 3, "enough for 2"),
        ([{"CPU": 0.0, "GPU": 4.0}], None, "enough for 0. To continue, add machines"),
    ],
)
def test_more_workers_than_the_machines_hold_are_refused(
    monkeypatch: pytest.MonkeyPatch,
    machines: list[dict[str, float]],
    num_workers: int | None,
    expected: str,
) -> None:
    with pytest.raises(ValueError, match=expected):
        run(monkeypatch, lambda unit, _: made(unit), num_workers, machines)


@pytest.mark.parametrize(
    ("machines", "num_workers", "expected"),
    [
        ([{"CPU": 4.0}], None, 1),
        ([{"CPU": 4.0}], 4, 4),
        ([GPUS, GPUS], None, 8),
        ([GPUS, GPUS], 8, 8),
        ([{"CPU": 2.0, "GPU": 4.0}], None, 2),
    ],
)
def test_as_many_workers_start_as_the_machines_hold(
    monkeypatch: pytest.MonkeyPatch,
    machines: list[dict[str, float]],
    num_workers: int | None,
    expected: int,
) -> None:
    found = run(monkeypatch, lambda unit, _: made(unit), num_workers, machines)
    assert found.ray.num_hired == expected


def test_the_sigterm_handler_is_restored_where_ray_does_not_start(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    before = signal.getsignal(signal.SIGTERM)
    ray: Any = FakeRay(lambda unit, _: made(unit))

    def init(**_: Any) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        raise RuntimeError("no shared memory")

    ray.init = init
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setitem(sys.modules, "ray", ray)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    nothing: Any = SimpleNamespace(show=lambda *_: None)
    try:
        with pytest.raises(ValueError, match="Ray: cannot be started: no shared memory"):
            RayEngine().make_units(nothing, nothing, nothing, nothing)
        assert signal.getsignal(signal.SIGTERM) is before
    finally:
        signal.signal(signal.SIGTERM, before)


def test_a_missing_ray_package_names_the_extra_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    nothing: Any = SimpleNamespace(show=lambda *_: None)
    with pytest.raises(ValueError, match=r"pip install 'xlstm-distill\[ray\]'"):
        RayEngine().make_units(nothing, nothing, nothing, nothing)


@pytest.mark.allow_hosts(["127.0.0.1"])
@pytest.mark.parametrize("from_environment", [False, True])
def test_an_unreachable_ray_cluster_is_named(
    monkeypatch: pytest.MonkeyPatch, from_environment: bool
) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    ray = FakeRay(lambda unit, _: made(unit))
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setitem(sys.modules, "ray", ray)
    monkeypatch.setenv("RAY_ADDRESS", address if from_environment else "127.0.0.1:1")
    settings = RayEngine(address=None if from_environment else address)
    nothing: Any = SimpleNamespace(show=lambda *_: None)
    with pytest.raises(ValueError, match=f"the cluster at {address} cannot be reached: .*refused"):
        settings.make_units(nothing, nothing, nothing, nothing)
