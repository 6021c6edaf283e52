"""What can be refused before the first run of a sweep: by the cache, and by what is in its place.

In: a plan, an open cache and the sweep's directory. Out: what has become of each run so far, and
every problem of every run. Nothing is written.
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from cache_format.errors import AdvisedError
from cache_format.reader import Cache
from cache_format.storage.atomic import is_temporary
from pipeline.ablation.planning.planned_runs import Plan, PlannedRun, Problems
from pipeline.ablation.planning.run_size import RunSize, run_size
from pipeline.ablation.planning.sweep_copy import SWEEP_FILE
from pipeline.ablation.planning.train_command import TrainCommand
from pipeline.run_report.recorded.recorded_run import read_run
from stages.train_student.checkpoints.run_record import RUN_FILE, read_record
from stages.train_student.config import TrainStudentConfig
from stages.train_student.preflight import check_early
from stages.train_student.trainer.run_directory import require_same

RunState = Literal["new", "begun", "finished"]
_OTHERS = "manifest.json"  # of a cache
_CHANGED = (
    "Nothing was changed. Restore what it was begun with, give the variant another name, or move "
    "its directory away."
)


@dataclass(frozen=True, kw_only=True)
class CheckedRun:
    """A run that can be trained, or has been."""

    run: PlannedRun
    state: RunState
    size: RunSize


def check_runs(
    plan: Plan, cache: Cache, out: Path, command: TrainCommand, problems: Problems
) -> list[CheckedRun]:
    """Each run of ``plan`` that nothing speaks against; the others are among ``problems``."""
    problems.add("", _directory_problems(out))
    if other := _other_cache(plan, cache, out):
        problems.add("", [other])  # and not every hash in which every run differs
        return []
    checked = []
    for run in plan.runs:
        place = out / run.name
        try:
            size = run_size(run.config, cache)
            _require_free_path(out, place)
            state = _state(place)
            _check(run, cache, place, state, command)
        except (ValueError, OSError) as error:
            problems.add(run.point, [str(error)])
        else:
            checked.append(CheckedRun(run=run, state=state, size=size))
    return checked


def is_finished(place: Path) -> bool:
    """Whether there is a run at ``place`` that has reached its last step and has a model."""
    return (place / RUN_FILE).is_file() and read_run(place, place.name).state == "finished"


def left_over(plan: Plan, out: Path) -> list[str]:
    """Runs below ``out`` that the sweep does not have, by name; they are left as they are."""
    planned = {run.name for run in plan.runs}
    found = {
        str(path.parent.relative_to(out))
        for pattern in ("*/seed=*", "*/*/seed=*")
        for path in out.glob(f"{pattern}/{RUN_FILE}")
    }
    return sorted(found - planned)


def _directory_problems(out: Path) -> Iterator[str]:
    if out.exists() and not out.is_dir():
        yield f"{out}: not a directory. Choose another --out."
    elif out.is_dir() and not (out / SWEEP_FILE).exists():
        names = [path.name for path in out.iterdir() if not is_temporary(path)]
        if names:
            what = "holds a run" if RUN_FILE in names else "not empty"
            what = "holds a cache" if _OTHERS in names else what
            yield f"{out}: {what}, and not a sweep ({SWEEP_FILE} is missing). Choose another --out."


def _other_cache(plan: Plan, cache: Cache, out: Path) -> str:
    """That a run in ``out`` has begun on another cache; "" where none has."""
    for run in plan.runs:
        place = out / run.name
        try:
            if _state(place) == "new":
                continue
            record = read_record(place)
        except (ValueError, OSError):
            continue  # which is a problem of that run
        if record.identity.get("cache_id") != cache.cache_id:
            return (
                f"{place}: began on another cache, {record.cache_location}, and not on "
                f"{cache.path}. Give that one, or choose another --out."
            )
    return ""


def _require_free_path(out: Path, place: Path) -> None:
    """Raise ValueError where a directory on the way to ``place`` cannot hold runs."""
    for path in place.parents:
        if path == out:
            return
        if os.path.lexists(path) and not path.is_dir():
            raise ValueError(f"{path}: not a directory. Move it away.")
        if (path / RUN_FILE).exists():
            raise ValueError(
                f"{path}: holds a run itself, so no other can lie in it. Move it away."
            )


def _state(place: Path) -> RunState:
    if is_finished(place):
        return "finished"
    return "begun" if any((place / "checkpoints").glob("step-*")) else "new"


def _check(
    run: PlannedRun, cache: Cache, place: Path, state: RunState, command: TrainCommand
) -> None:
    """Raise ValueError where ``run`` cannot be trained, or what is at ``place`` is not it."""
    is_online = command.online is not None
    if state != "new":
        config = _as_recorded(run.config, place)
        try:
            record = require_same(place, cache, config, online=is_online)
        except AdvisedError as error:
            raise ValueError(f"{error.problem} {_CHANGED}") from error
        begins_from = record.init_location
        if (begins_from is None) != (command.init is None):
            raise ValueError(
                f"{place}: began from {begins_from or 'random weights'}, and would now begin from "
                f"{command.init or 'random weights'}. {_CHANGED}"
            )
    if state != "finished":
        teacher = None if command.teacher is None else Path(command.teacher)
        check_early(run.config, cache, place, resume=True, online=is_online, teacher=teacher)


def _as_recorded(config: TrainStudentConfig, place: Path) -> TrainStudentConfig:
    """With the precision that ``auto`` has been."""
    precision = read_record(place).identity.get("precision")
    if config.precision != "auto" or precision not in ("fp32", "bf16", "fp16"):
        return config
    return replace(config, precision=precision)
