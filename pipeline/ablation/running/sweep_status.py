"""What has become of the runs of a sweep, those that have not begun included.

In: the directory that ``pipeline ablate`` wrote with ``--out``. Out: a state for each run that its
copy of the sweep names. Reads alone; a damaged copy is a problem that is said.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from cache_format.storage.atomic import open_regular
from pipeline.ablation.planning.planned_runs import Problems, plan_runs
from pipeline.ablation.planning.sweep import load_sweep
from pipeline.ablation.planning.sweep_copy import SWEEP_FILE, log_of
from pipeline.ablation.running.failed_run import error_text
from pipeline.run_report.recorded.recorded_run import RecordedRun, is_held, read_run

Outcome = Literal["finished", "running", "failed", "interrupted", "not begun"]
_OUTCOMES: tuple[Outcome, ...] = ("finished", "running", "failed", "interrupted", "not begun")
_SHOWN = 6
_RUN_FILE = "run.json"
_MOST_BYTES = 1 << 20


@dataclass(frozen=True, kw_only=True)
class SweepStatus:
    """See the top of the file."""

    path: Path
    outcomes: Mapping[str, Outcome]
    """By the runs' names."""
    errors: Mapping[str, str]
    """The last error of each that failed."""

    @property
    def counts(self) -> dict[Outcome, int]:
        """How many there are of each, those of which there are none left out."""
        found = list(self.outcomes.values())
        return {each: found.count(each) for each in _OUTCOMES if each in found}

    @property
    def has_begun(self) -> bool:
        """Whether any of its runs has recorded anything."""
        return any((self.path / name / _RUN_FILE).exists() for name in self.outcomes)

    def lines(self) -> list[str]:
        """A sentence with all counts; which failed, and why; which have not begun."""
        num_runs = len(self.outcomes)
        counts = ", ".join(f"{count} {each}" for each, count in self.counts.items())
        lines = [f"{self.path}: a sweep of {num_runs} run{'' if num_runs == 1 else 's'}: {counts}."]
        errors = [f"{name} failed: {text}" for name, text in self.errors.items()]
        lines += errors[:_SHOWN]
        if len(errors) > _SHOWN:
            lines.append(f"{len(errors) - _SHOWN} more failed; their logs are beside them.")
        waiting = [name for name, outcome in self.outcomes.items() if outcome == "not begun"]
        if waiting and len(waiting) < num_runs:
            more = f" and {len(waiting) - _SHOWN} more" if len(waiting) > _SHOWN else ""
            lines.append(f"Not begun: {', '.join(waiting[:_SHOWN])}{more}.")
        return lines


def is_sweep(path: Path) -> bool:
    """Whether ``pipeline ablate`` has written to ``path``."""
    return (path / SWEEP_FILE).is_file()


def sweep_text(path: Path) -> str:
    """The sweep's copy in ``path``, as TOML. Raises OSError where it cannot be read."""
    with open_regular(path / SWEEP_FILE) as file:
        return file.read(_MOST_BYTES).decode("utf-8", "replace")


def sweep_status(
    path: Path,
    read: Callable[[Path, str], RecordedRun] = read_run,
    held: Callable[[Path], bool] = is_held,
) -> SweepStatus:
    """The runs of the sweep in ``path``, in the order in which they are trained.

    ``read`` reads one that has begun, and ``held`` says whether one is about to.
    Raises ValueError or OSError where its copy of the sweep cannot be read.
    """
    problems = Problems()
    plan = plan_runs(load_sweep(path / SWEEP_FILE), problems)
    problems.raise_any(str(path / SWEEP_FILE))
    outcomes: dict[str, Outcome] = {}
    errors: dict[str, str] = {}
    for run in plan.runs:
        log = log_of(path, run.name)
        error = error_text(log)
        outcomes[run.name] = _outcome(path / run.name, log, error, read, held)
        if outcomes[run.name] == "failed":
            errors[run.name] = error
    return SweepStatus(path=path, outcomes=outcomes, errors=errors)


def _outcome(
    place: Path,
    log: Path,
    error: str,
    read: Callable[[Path, str], RecordedRun],
    held: Callable[[Path], bool],
) -> Outcome:
    has_record = (place / _RUN_FILE).exists()
    state = read(place, place.name).state if has_record else None
    if state == "finished":
        return "finished"
    if error:  # of the last command: one that goes on has printed none
        return "failed"
    if state == "running" or (not has_record and held(place)):
        return "running"
    # A process that was killed before it recorded anything has a log all the same.
    return "interrupted" if has_record or log.exists() else "not begun"
