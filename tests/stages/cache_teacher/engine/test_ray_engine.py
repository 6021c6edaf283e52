"""What the engine does about workers and units that fail: a cluster that is only imagined."""

import socket
import sys
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from stages.cache_teacher.engine.device_use import DeviceUse
from stages.cache_teacher.engine.ray_engine import RaySettings, make_units_on_ray
from stages.cache_teacher.engine.remote_maker import MadeUnit

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

    def __init__(self, outcome: Outcome) -> None:
        self.outcome = outcome
        self.asked: list[int] = []
        self.num_hired = self.num_killed = 0
        self.most_open = 0

    def is_initialized(self) -> bool:
        return True

    def cluster_resources(self) -> dict[str, float]:
        return {"CPU": 4.0}

    def put(self, job: Any) -> Any:
        return job

    def remote(self, **options: Any) -> Any:
        def hire(job: Any) -> Any:
            self.num_hired += 1
            return SimpleNamespace(
                load=SimpleNamespace(remote=lambda: FakeCall(-1)),
                make=SimpleNamespace(remote=FakeCall),
            )

        return lambda _: SimpleNamespace(remote=hire)

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


def run(monkeypatch: pytest.MonkeyPatch, outcome: Outcome, num_workers: int = 2) -> Any:
    ray = FakeRay(outcome)
    monkeypatch.setitem(sys.modules, "ray", ray)
    finished: list[int] = []
    progress: Any = SimpleNamespace(
        **dict.fromkeys(("show", "know_device", "used", "begin_unit", "made_unit"), lambda *_: None)
    )
    job: Any = None
    queue: Any = FakeQueue()
    try:
        make_units_on_ray(
            job,
            RaySettings(num_workers=num_workers),
            queue,
            progress,
            lambda entry: finished.append(entry.unit),
        )
    finally:
        assert ray.num_killed == ray.num_hired  # nobody is left behind
    return SimpleNamespace(ray=ray, finished=finished)


def test_every_unit_once(monkeypatch: pytest.MonkeyPatch) -> None:
    found = run(monkeypatch, lambda unit, _: made(unit))
    assert sorted(found.finished) == list(range(10))
    assert found.ray.num_hired == 2
    assert found.ray.most_open == 6


def test_what_a_dead_worker_was_at_is_made_by_others(monkeypatch: pytest.MonkeyPatch) -> None:
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


def test_workers_that_never_come_up_are_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(RuntimeError, match="11 workers have died one after the other"):
        run(monkeypatch, lambda unit, _: FakeRayError())


@pytest.mark.parametrize("unit", [-1, 4])
def test_what_would_only_happen_again_is_raised_at_once(
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


def test_where_ray_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    nothing: Any = SimpleNamespace(show=lambda *_: None)
    with pytest.raises(ValueError, match=r"pip install 'xlstm-distill\[ray\]'"):
        make_units_on_ray(nothing, RaySettings(), nothing, nothing, nothing)


@pytest.mark.allow_hosts(["127.0.0.1"])
@pytest.mark.parametrize("from_environment", [False, True])
def test_a_cluster_that_is_not_there(
    monkeypatch: pytest.MonkeyPatch, from_environment: bool
) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    ray = FakeRay(lambda unit, _: made(unit))
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setitem(sys.modules, "ray", ray)
    monkeypatch.setenv("RAY_ADDRESS", address if from_environment else "127.0.0.1:1")
    settings = RaySettings(address=None if from_environment else address)
    nothing: Any = SimpleNamespace(show=lambda *_: None)
    with pytest.raises(ValueError, match=f"the cluster at {address} cannot be reached: .*refused"):
        make_units_on_ray(nothing, settings, nothing, nothing, nothing)
