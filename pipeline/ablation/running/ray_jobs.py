"""Runs on the machines of a Ray cluster: a ``Launch``, for the pool that trains runs here as well.

A run whose machine or worker is lost (a spot machine taken back, say) starts again wherever there
is room, from its newest checkpoint. One that fails by itself is not tried again.
"""

import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from cache_format.storage.atomic import make_directory
from pipeline.ablation.running.processes import COMMAND_MARK, Job
from pipeline.ablation.running.ray_worker import STOPPED, RunWorker

MOST_LOSSES = 5
"""So many times in a row, without a new checkpoint between them, may a run lose its worker."""
_SECONDS_TO_TELL = 30.0
_SECONDS_TO_KILL = 10.0
_SIGNALS = (-9, -15, STOPPED)
"""Exit codes of a process that others have ended: with their machine, as far as can be known."""


@dataclass(frozen=True, kw_only=True)
class RayJobs:
    """Actors of a cluster, one for each run. Calling it is a ``Launch``."""

    ray: Any
    num_cpus: int
    """Of each run."""
    num_gpus: int
    num_threads: str
    """As OpenMP has it."""
    needed: Mapping[Path, Path]
    """See ``require_reached``."""
    say: Callable[[Job, str], None]

    def __call__(self, job: Job, slot: int) -> "RayJob":
        return RayJob(self, job)

    def actor(self) -> Any:
        """A new one, which starts where and when there is room."""
        options = {"num_cpus": self.num_cpus, "num_gpus": self.num_gpus}
        options |= {"max_concurrency": 2, "max_restarts": 0, "max_task_retries": 0}
        return self.ray.remote(**options)(RunWorker).remote(self.num_threads)


class RayJob:
    """A run that was given to a cluster."""

    def __init__(self, jobs: RayJobs, job: Job) -> None:
        self._jobs, self._ray, self._job = jobs, jobs.ray, job
        self._exit_code: int | None = None
        self._is_stopping = False
        self._num_losses = 0
        self._checkpoints = _checkpoints(job)
        self._spawn()

    def exit_code(self) -> int | None:
        """See ``Started``. A run that was lost is started again here, and has none yet."""
        if self._exit_code is None and self._is_done(self._call):
            self._take_in()
        elif self._exit_code is None and not self._has_told and not self._is_done(self._ready):
            self._tell_waiting()
        return self._exit_code

    def stop(self) -> None:
        """See ``Started``."""
        self._is_stopping = True
        if self._is_done(self._ready):
            self._actor.stop.remote()
        else:
            self._end(STOPPED)  # there was no room for it yet

    def kill(self) -> None:
        """See ``Started``."""
        self._is_stopping = True
        if self._exit_code is not None:
            return
        if self._is_done(self._ready):
            # Not its actor first: what that has started would save a checkpoint before it ends.
            self._actor.kill.remote()
            self._ray.wait([self._call], timeout=_SECONDS_TO_KILL)
        self._end(STOPPED)

    def _spawn(self) -> None:
        self._began, self._has_told = time.monotonic(), False
        self._actor = self._jobs.actor()
        self._ready = self._actor.ready.remote()
        self._call = self._actor.run.remote(self._job, self._jobs.needed)

    def _is_done(self, call: Any) -> bool:
        ended, _ = self._ray.wait([call], timeout=0)
        return bool(ended)

    def _take_in(self) -> None:
        """What came of the call."""
        try:
            exit_code = self._ray.get(self._call)
        except self._ray.exceptions.RayError as error:
            cause = getattr(error, "cause", None)
            if isinstance(cause, Exception):  # the worker's own: it would come again
                self._fail(str(cause) or type(cause).__name__)
            else:
                self._on_loss(f"its worker was lost ({_first_line(error)})")
            return
        if exit_code in _SIGNALS:
            self._on_loss("it was ended by a signal", exit_code)
        else:
            self._end(exit_code)

    def _on_loss(self, what: str, exit_code: int = STOPPED) -> None:
        """Start the run again, unless that was in vain too often."""
        if self._is_stopping:
            self._end(exit_code)
            return
        checkpoints = _checkpoints(self._job)
        self._num_losses = 1 if checkpoints != self._checkpoints else self._num_losses + 1
        self._checkpoints = checkpoints
        if self._num_losses >= MOST_LOSSES:
            self._fail(f"{what}, for the {MOST_LOSSES}th time without a new checkpoint between")
            return
        self._release()
        self._jobs.say(self._job, f"{what}; it starts again from its newest checkpoint")
        self._spawn()

    def _fail(self, why: str) -> None:
        """End it with an error that its own process did not get to write to its log."""
        make_directory(self._job.log.parent)
        now = datetime.now().astimezone().isoformat(timespec="seconds")
        with open(self._job.log, "a", encoding="utf-8") as log:
            log.write(f"\n{COMMAND_MARK}{now} on the Ray cluster\nError: {why}\n")
        self._end(1)

    def _end(self, exit_code: int) -> None:
        self._exit_code = exit_code
        self._release()

    def _release(self) -> None:
        """Give back the actor's room; it may be dead already."""
        with suppress(Exception):
            self._ray.kill(self._actor, no_restart=True)

    def _tell_waiting(self) -> None:
        if time.monotonic() - self._began > _SECONDS_TO_TELL:
            self._jobs.say(self._job, "waits for room in the Ray cluster (see `ray status`)")
            self._has_told = True


def _checkpoints(job: Job) -> frozenset[str]:
    """The names of its checkpoints, of which old ones are removed."""
    return frozenset(path.name for path in job.out.glob("checkpoints/step-*"))


def _first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__
