"""What is watched: the files of a run, or of all runs of a sweep, read anew where they changed.

Nothing is locked: a lock, however short, could keep a run that is starting out of its directory. So
a run is taken to be running while it reports, and what its files cannot tell is said.
"""

import os
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

from pipeline.ablation.running.sweep_status import Outcome, is_sweep, sweep_status
from pipeline.run_report.recorded.recorded_run import RecordedRun, count_of, read_run

_RUN_FILE = "run.json"
_FILES = (_RUN_FILE, "metrics.jsonl", "recipe.toml", "model/config.json")
_SECONDS_TO_REPORT = 120.0
_MOST_SPEEDS = 10
_PARENTS_TO_SWEEP = 3

Clock = Callable[[], float]


@dataclass(frozen=True, kw_only=True)
class WatchedRun:
    """One run as its files are now."""

    name: str
    outcome: Outcome
    run: RecordedRun | None
    """None where it has recorded nothing."""
    seconds_silent: float | None
    """Since its last report."""
    error: str = ""
    """Why it failed, as the log of its sweep has it."""

    @property
    def step(self) -> int:
        """The last one that was reported."""
        return 0 if self.run is None else self.run.metrics.last_step

    @property
    def num_steps(self) -> int | None:
        """The last one that is planned."""
        return None if self.run is None else self.run.num_steps

    @property
    def share(self) -> float | None:
        """Of the steps that are planned, from 0 to 1."""
        return None if not self.num_steps else min(1.0, self.step / self.num_steps)

    @property
    def tokens_per_second(self) -> float | None:
        """The median of its newest reports."""
        if self.run is None:
            return None
        newest = reversed(self.run.metrics.of("speed/tokens_per_second").values())
        speeds = list(islice(newest, _MOST_SPEEDS))
        return statistics.median(speeds) if speeds else None

    @property
    def seconds_left(self) -> float | None:
        """To the last step at this speed, validations not counted; None where it is not running."""
        speed = self.tokens_per_second
        if self.outcome != "running" or self.run is None or self.num_steps is None or not speed:
            return None
        data = None if self.run.record is None else self.run.record.data
        if data is None or (rows := self.run.rows_per_step) is None:
            return None
        tokens = max(0, self.num_steps - self.step) * rows * data.sequence_length
        return tokens / speed


@dataclass(frozen=True, kw_only=True)
class Watched:
    """A run, or all runs of a sweep in the order in which they are trained."""

    path: Path
    is_sweep: bool
    runs: tuple[WatchedRun, ...]

    @property
    def has_ended(self) -> bool:
        """Whether all runs have finished or failed, and nothing more can be seen."""
        return all(run.outcome in ("finished", "failed") for run in self.runs)


class Watcher:
    """Reads ``path`` again and again. Raises ValueError where it is neither a run nor a sweep."""

    def __init__(self, path: Path, now: Clock = time.time) -> None:
        self._path, self._now = path, now
        self._known: dict[Path, tuple[object, RecordedRun]] = {}
        self._is_sweep = is_sweep(path)
        if not self._is_sweep:
            _require_run(path)

    def look(self) -> Watched:
        """The files as they are now. Raises ValueError or OSError where they cannot be read."""
        if not self._is_sweep:
            runs = [self._watched(self._path, self._path.name, None, "")]
        else:
            status = sweep_status(self._path, self._read, held=self._is_starting)
            runs = [
                self._watched(self._path / name, name, outcome, status.errors.get(name, ""))
                for name, outcome in status.outcomes.items()
            ]
        return Watched(path=self._path, is_sweep=self._is_sweep, runs=tuple(runs))

    def _watched(self, path: Path, name: str, outcome: Outcome | None, error: str) -> WatchedRun:
        if not os.path.lexists(path / _RUN_FILE):
            return WatchedRun(
                name=name,
                outcome=outcome or "not begun",
                run=None,
                seconds_silent=None,
                error=error,
            )
        run = self._read(path, name)
        if outcome is None:
            outcome = run.state if run.state in ("finished", "running") else "interrupted"
        silent = None if run.written is None else max(0.0, self._now() - run.written.timestamp())
        return WatchedRun(name=name, outcome=outcome, run=run, seconds_silent=silent, error=error)

    def _read(self, path: Path, name: str) -> RecordedRun:
        """``read_run``, or what it returned last if no file has changed."""
        files = tuple(_signature(path / file) for file in _FILES)
        known = self._known.get(path)
        if known is None or known[0] != files:
            known = (files, read_run(path, name, held=self._reports))
            self._known[path] = known
        run = known[1]
        if run.state in ("running", "stopped"):
            run = replace(run, state="running" if self._reports(path) else "stopped")
        return run

    def _reports(self, path: Path) -> bool:
        """Whether the run in ``path`` has reported, or begun, within two minutes."""
        return self._is_new(*(path / name for name in _FILES[:2]))

    def _is_starting(self, path: Path) -> bool:
        """Whether the log of the run in ``path``, beside it, was written within two minutes."""
        return self._is_new(path.with_name(f"{path.name}.log"))

    def _is_new(self, *paths: Path) -> bool:
        times = [found[0] for path in paths if (found := _signature(path))]
        return bool(times) and self._now() - max(times) / 1e9 < _SECONDS_TO_REPORT


def tokens_done(watched: WatchedRun) -> int | None:
    """Positions that a run has trained on; None where that is not recorded."""
    run = watched.run
    if run is None or run.record is None or run.record.data is None or run.rows_per_step is None:
        return None
    length = count_of(run.record.data.sequence_length)
    return None if length is None else watched.step * run.rows_per_step * length


def _signature(path: Path) -> tuple[int, int] | None:
    """Time of change in ns, and size; None without a file."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size


def _require_run(path: Path) -> None:
    """Raise ValueError where ``path`` is no run, nor the place of one that has not begun."""
    if os.path.lexists(path / _RUN_FILE):
        return
    if any(is_sweep(parent) for parent in list(path.absolute().parents)[:_PARENTS_TO_SWEEP]):
        return
    expected = "Give the directory that train-student or ablate writes with --out."
    if not path.is_dir():
        raise ValueError(f"{path}: no such directory. {expected}")
    if names := sorted(entry.name for entry in path.iterdir() if not entry.name.startswith(".")):
        what = "a cache" if "manifest.json" in names else "neither a run nor a sweep"
        raise ValueError(
            f"{path}: {what}: it holds {', '.join(names[:3])}, and no run.json. {expected}"
        )
