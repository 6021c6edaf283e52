"""How far a sweep is, as events: a line for what happens to a run, and the tokens of all runs.

In: what the pool tells. Out: events, sent to the command's reporter. Steps are read from the ends
of the runs' ``metrics.jsonl``, as no process but a run's own may lock its directory.
"""

import json
import os
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from pipeline.ablation.planning.run_size import RunSize
from pipeline.ablation.running.failed_run import failure_text
from pipeline.ablation.running.processes import Job
from pipeline.reporting.events import Event
from pipeline.run_report.recorded.recorded_run import read_run
from pipeline.run_report.table import quantity

_SECONDS_BETWEEN = 1.0
_READ_BYTES = 1 << 14
_SHOWN_RUNS = 2

Send = Callable[[Event], None]


class SweepProgress:
    """Sends what happens to ``send``; ``failures`` are those so far, by the names of runs."""

    def __init__(self, send: Send, sizes: Mapping[str, RunSize], finished: Sequence[str]) -> None:
        """``sizes`` of all runs of the sweep; ``finished`` are those that need nothing more."""
        self._send, self._sizes = send, sizes
        self._finished = set(finished)
        self.failures: dict[str, str] = {}
        self._begins: dict[str, float] = {}
        self._last = 0.0
        self._total = sum(size.tokens for size in sizes.values())

    def started(self, job: Job) -> None:
        """A line, and the clock is started."""
        self._begins[job.name] = time.monotonic()
        step = step_reached(job.out)
        since = f", had reached step {step:,}" if step else ""
        self._message(job, f"started{since} (log: {job.log})")

    def ended(self, job: Job, exit_code: int) -> None:
        """A line: what came of it."""
        begin = self._begins.pop(job.name, None)
        took = "" if begin is None else f" in {quantity(time.monotonic() - begin, 'seconds')}"
        if exit_code:
            self.failures[job.name] = failure_text(job.log, exit_code)
            self._message(job, f"failed{took}: {self.failures[job.name]}")
            return
        self._finished.add(job.name)
        loss = read_run(job.out, job.name).metrics.last("validation/loss")
        text = "" if loss is None else f", validation loss {loss:.4f}"
        self._message(job, f"finished{took}{text} ({self._counts()})")

    def stopping(self, num_runs: int) -> None:
        """A line, because it takes seconds."""
        runs = "1 run saves a checkpoint" if num_runs == 1 else f"{num_runs} runs save checkpoints"
        text = f"stopping: {runs} of the last finished step; once more stops at once"
        self._send(Event(name="message", text=text, fields={"message": text}))

    def waiting(self, jobs: Sequence[Job]) -> None:
        """A line, because it may take long."""
        names = ", ".join(job.name for job in jobs[:_SHOWN_RUNS])
        more = f" and {len(jobs) - _SHOWN_RUNS} more" if len(jobs) > _SHOWN_RUNS else ""
        text = f"waiting: another process is training {names}{more}"
        self._send(Event(name="message", text=text, fields={"message": text}))

    def looked(self, running: Sequence[Job]) -> None:
        """Tokens done of all, once a second at most."""
        now = time.monotonic()
        if now - self._last < _SECONDS_BETWEEN:
            return
        self._last = now
        done = sum(self._sizes[name].tokens for name in self._finished)
        texts = []
        for job in running:
            size, step = self._sizes[job.name], step_reached(job.out)
            done += min(step, size.num_steps) * size.tokens_per_step
            texts.append(f"{job.name} {step:,}/{size.num_steps:,}")
        more = len(texts) - _SHOWN_RUNS
        texts = texts[:_SHOWN_RUNS] + ([f"{more} more"] if more > 0 else [])
        fields = {
            "tokens_done": done,
            "tokens_total": self._total,
            "runs_finished": len(self._finished),
            "runs_failed": len(self.failures),
            "runs_total": len(self._sizes),
            "running": [job.name for job in running],
        }
        text = " · ".join([self._counts(), *texts])
        self._send(Event(name="progress", text=text, fields=fields))

    def _counts(self) -> str:
        failed = f", {len(self.failures)} failed" if self.failures else ""
        return f"{len(self._finished)} of {len(self._sizes)} runs{failed}"

    def _message(self, job: Job, text: str) -> None:
        line = f"{job.name}: {text}"
        self._send(Event(name="message", text=line, fields={"message": line, "run": job.name}))


def step_reached(run: Path) -> int:
    """The last step that the run in the directory ``run`` has reported; 0 before the first."""
    try:
        with open(run / "metrics.jsonl", "rb") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - _READ_BYTES))
            lines = file.read().splitlines()
    except OSError:
        return 0
    for line in reversed(lines):
        try:
            step = json.loads(line)["step"]
        except (ValueError, KeyError, TypeError):
            continue  # the last line is still being written, or the first is cut
        return step if type(step) is int and step >= 0 else 0
    return 0
