"""The pool of a sweep: slots, failures, runs of others, interruptions."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from pipeline.ablation.running.processes import Job, Started
from pipeline.ablation.running.run_pool import PoolEvents, RunPool, State


def jobs(*names: str) -> list[Job]:
    return [Job(name=name, arguments=(), out=Path(name), log=Path("log")) for name in names]


@dataclass
class Fake:
    """A process that ends when the clock says."""

    ends: int
    code: int
    clock: Callable[[], int]
    signals: list[str] = field(default_factory=list)
    stops_in: int = 2

    def exit_code(self) -> int | None:
        return self.code if self.clock() >= self.ends else None

    def stop(self) -> None:
        self.signals.append("stop")
        self.ends, self.code = self.clock() + self.stops_in, 143

    def kill(self) -> None:
        self.signals.append("kill")
        self.ends, self.code = self.clock(), -9


class World:
    """Fake processes, a clock that moves while the pool sleeps, and all that was told."""

    def __init__(self, lengths: dict[str, int], codes: dict[str, int] | None = None) -> None:
        self.now = 0
        self.lengths, self.codes = lengths, codes or {}
        self.fakes: dict[str, Fake] = {}
        self.slots: dict[str, int] = {}
        self.told: list[str] = []
        self.most = 0
        self.states: dict[str, list[State]] = {}
        self.interrupts: list[int] = []

    def launch(self, job: Job, slot: int) -> Started:
        ends = self.now + self.lengths[job.name]
        self.fakes[job.name] = Fake(ends, self.codes.get(job.name, 0), lambda: self.now)
        self.slots[job.name] = slot
        return self.fakes[job.name]

    def sleep(self, seconds: float) -> None:
        self.now += 1
        if self.interrupts and self.now >= self.interrupts[0]:
            self.interrupts.pop(0)
            raise KeyboardInterrupt

    def looked(self, running: Sequence[Job]) -> None:
        self.most = max(self.most, len(running))

    def state_of(self, job: Job) -> State:
        states = self.states.get(job.name, ["open"])
        return states.pop(0) if len(states) > 1 else states[0]

    def run(self, num_slots: int, todo: list[Job]) -> None:
        events = PoolEvents(
            started=lambda job: self.told.append(f"{job.name} started"),
            ended=lambda job, code: self.told.append(f"{job.name} ended {code}"),
            stopping=lambda number: self.told.append(f"stopping {number}"),
            waiting=lambda left: self.told.append(f"waiting for {len(left)}"),
            looked=self.looked,
            state_of=self.state_of,
        )
        RunPool(num_slots, self.launch, events, sleep=self.sleep).run(todo)


def test_so_many_run_at_a_time_each_in_a_slot_of_its_own() -> None:
    world = World({"a": 3, "b": 1, "c": 1, "d": 1})
    world.run(2, jobs("a", "b", "c", "d"))
    assert world.most == 2
    assert world.slots == {"a": 0, "b": 1, "c": 1, "d": 1}
    assert sorted(world.told) == sorted(f"{n} {w}" for n in "abcd" for w in ("started", "ended 0"))


def test_a_failure_stops_none_of_the_others() -> None:
    world = World({"a": 1, "b": 1}, {"a": 1})
    world.run(1, jobs("a", "b"))
    assert world.told == ["a started", "a ended 1", "b started", "b ended 0"]


def test_a_run_that_another_process_trains_is_waited_for() -> None:
    world = World({"a": 1, "b": 1, "c": 1})
    held: list[State] = ["held"] * 9
    world.states = {"a": [*held, "finished"], "b": [*held, *held, "open"]}
    world.run(1, jobs("a", "b", "c"))
    assert world.told == [
        *("c started", "c ended 0", "waiting for 2"),
        *("a ended 0", "b started", "b ended 0"),
    ]


def test_an_interruption_asks_each_once_and_waits() -> None:
    world = World({"a": 99, "b": 99, "c": 99})
    world.interrupts = [3]
    with pytest.raises(KeyboardInterrupt):
        world.run(2, jobs("a", "b", "c"))
    assert [fake.signals for fake in world.fakes.values()] == [["stop"], ["stop"]]
    assert all(fake.exit_code() == 143 for fake in world.fakes.values())
    assert world.told[-1] == "stopping 2"
    assert "c" not in world.fakes


def test_a_second_interruption_kills() -> None:
    world = World({"a": 99})
    world.interrupts = [3, 4]
    with pytest.raises(KeyboardInterrupt):
        world.run(1, jobs("a"))
    assert world.fakes["a"].signals == ["stop", "kill"]


def test_a_terminal_that_is_gone_does_not_keep_runs_from_saving() -> None:
    world = World({"a": 99})
    world.interrupts = [3]

    def gone(_: int) -> None:
        raise BrokenPipeError

    events = PoolEvents(started=lambda _: None, ended=lambda *_: None, stopping=gone)
    with pytest.raises(KeyboardInterrupt):
        RunPool(1, world.launch, events, sleep=world.sleep).run(jobs("a"))
    assert world.fakes["a"].signals == ["stop"]
