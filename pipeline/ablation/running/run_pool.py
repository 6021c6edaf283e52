"""Runs jobs, so many at a time, until all have ended; a failure stops none of the others.

In: jobs and what starts them. Out: calls of ``ended`` with exit codes. All is done in the caller's
thread, so that Ctrl-C and SIGTERM end it between two steps of the loop.
"""

import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Literal

from pipeline.ablation.running.processes import Job, Launch, Started

State = Literal["open", "held", "finished"]
_SECONDS_BETWEEN_LOOKS = 0.2


@dataclass(frozen=True, kw_only=True)
class PoolEvents:
    """What the pool tells, and asks, while it is at work."""

    started: Callable[[Job], None]
    ended: Callable[[Job, int], None]
    """With the exit code; 0 as well where another process has finished it meanwhile."""
    stopping: Callable[[int], None] = lambda _: None
    """So many were asked to save and end; a second interruption kills them."""
    waiting: Callable[[Sequence[Job]], None] = lambda _: None
    """All that is left is held by processes of others. Told once."""
    looked: Callable[[Sequence[Job]], None] = lambda _: None
    """A few times a second, with what is running."""
    state_of: Callable[[Job], State] = lambda _: "open"
    """Whether a job can be started: asked before, and never while it runs here."""


@dataclass
class RunPool:
    """``num_slots`` jobs at a time."""

    num_slots: int
    launch: Launch
    events: PoolEvents
    sleep: Callable[[float], None] = time.sleep
    _running: dict[int, tuple[Job, Started]] = field(default_factory=dict, init=False)

    def run(self, jobs: Sequence[Job]) -> None:
        """Run ``jobs``, begun in their order.

        An exception, an interruption above all, asks those that run to save, and waits for them.
        """
        left = deque(jobs)
        has_told = False
        try:
            while left or self._running:
                has_changed = self._start(left) | self._reap()
                if left and not self._running and not has_changed and not has_told:
                    self.events.waiting(list(left))
                    has_told = True
                self.events.looked([job for job, _ in self._running.values()])
                if not has_changed:
                    self.sleep(_SECONDS_BETWEEN_LOOKS)
        except BaseException:
            self._stop()
            raise

    def _start(self, left: deque[Job]) -> bool:
        """Fill free slots with the first jobs that can be started; whether anything came of it."""
        has_changed = False
        for job in list(left):
            free = set(range(self.num_slots)) - self._running.keys()
            if not free:
                break
            state = self.events.state_of(job)
            if state == "held":
                continue
            left.remove(job)
            has_changed = True
            if state == "finished":
                self.events.ended(job, 0)
                continue
            slot = min(free)
            self._running[slot] = (job, self.launch(job, slot))
            self.events.started(job)
        return has_changed

    def _reap(self) -> bool:
        """Whether any has ended."""
        has_changed = False
        for slot, (job, started) in list(self._running.items()):
            if (exit_code := started.exit_code()) is not None:
                del self._running[slot]
                self.events.ended(job, exit_code)
                has_changed = True
        return has_changed

    def _stop(self) -> None:
        """Ask all to save and end, and wait; a second interruption kills what is left."""
        running = [started for _, started in self._running.values()]
        running = [started for started in running if started.exit_code() is None]
        if not running:
            return
        try:
            for started in running:
                started.stop()
            with suppress(OSError):  # a terminal that is gone is no reason to lose steps
                self.events.stopping(len(running))
            while any(started.exit_code() is None for started in running):
                self.sleep(_SECONDS_BETWEEN_LOOKS)
        except BaseException:
            for started in running:
                started.kill()
            raise
