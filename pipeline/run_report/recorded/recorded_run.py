"""A run of stage two as its directory records it: whether it has finished, settings, curves.

In: a directory with ``run.json``, ``recipe.toml`` and ``metrics.jsonl``. Out: a ``RecordedRun``. A
damaged file is said, and does not keep the other runs from being reported.
"""

import fcntl
import os
import tomllib
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from cache_format.errors import AdvisedError
from cache_format.storage.atomic import open_regular
from pipeline.run_report.recorded.metric_series import MetricSeries, read_series

if TYPE_CHECKING:
    from stages.train_student.checkpoints.run_record import RunRecord

State = Literal["finished", "running", "stopped", "unreadable"]
_MOST_TOML_BYTES = 1 << 20
_MOST_DAMAGED = 5
_NO_RECIPE = (
    "Its validation rows are taken to be those of the other runs of its cache, if these agree."
)
_ROWS_OF_STEP = ("batch_size", "gradient_accumulation_steps")


@dataclass(frozen=True, kw_only=True)
class RecordedRun:
    """One run."""

    path: Path
    name: str
    """What it is called in a report."""
    state: State
    """"stopped": not finished, and no process of this machine is in it."""
    record: "RunRecord | None" = None
    """None where ``run.json`` cannot be read."""
    recipe: Mapping[str, Any] = field(default_factory=dict)
    """The table [train_student]; empty where it cannot be read."""
    has_recipe: bool = False
    """Whether ``recipe.toml`` could be read."""
    metrics: MetricSeries = field(default_factory=MetricSeries)
    num_steps: int | None = None
    """The last step that is planned."""
    written: datetime | None = None
    """When it last reported."""
    problems: tuple[str, ...] = ()

    @property
    def identity(self) -> Mapping[str, Any]:
        """What makes its result what it is; empty where that cannot be read."""
        return self.record.identity if self.record else {}

    @property
    def cache_id(self) -> str:
        """Of the cache that it learns from; "unknown" without one."""
        found = self.identity.get("cache_id")
        return found if isinstance(found, str) else "unknown"

    @property
    def rows_per_step(self) -> int | None:
        """Sequences of an optimizer step."""
        batch, accumulated = (count_of(self.identity.get(key)) for key in _ROWS_OF_STEP)
        return None if batch is None or accumulated is None else batch * accumulated

    @property
    def state_text(self) -> str:
        """What has become of it, in words."""
        if self.state == "unreadable":
            return "unreadable"
        done = f"{self.metrics.last_step:,}"
        if self.state == "finished":
            return f"finished, {done} steps" if self.metrics.by_name else "finished, figures lost"
        of = "" if self.num_steps is None else f" of {self.num_steps:,}"
        if self.state == "running":
            return f"running, step {done}{of}"
        since = "" if self.written is None else f", last line {self.written:%Y-%m-%d %H:%M} UTC"
        return f"failed or interrupted at step {done}{of}{since}"


def count_of(value: object) -> int | None:
    """``value``, if it is a number of things that there can be."""
    return value if type(value) is int and 0 < value < 2**53 else None


def read_run(path: Path, name: str, held: Callable[[Path], bool] | None = None) -> RecordedRun:
    """The run in the directory ``path``. What cannot be read is among its ``problems``.

    ``held`` says whether a process is training into it; without it, ``is_held``.
    """
    from stages.train_student.checkpoints.run_record import read_record

    problems: list[str] = []
    record, metrics, recipe = None, MetricSeries(), None
    try:
        record = read_record(path)
    except AdvisedError as error:
        problems.append(error.problem)  # what to do concerns who trains on, and may not be there
    except (ValueError, OSError, RuntimeError) as error:
        problems.append(str(error))
    try:
        metrics = read_series(path / "metrics.jsonl")
    except (ValueError, OSError, RuntimeError) as error:
        problems.append(str(error))
    else:
        problems += _metrics_problems(path, metrics)
    consequence = "" if record is None else _NO_RECIPE
    try:
        recipe = _train_student_table(path / "recipe.toml")
    except FileNotFoundError:
        problems.append(f"{path / 'recipe.toml'}: missing. {consequence}".rstrip())
    except (ValueError, OSError, RuntimeError) as error:  # nested too deep is a RuntimeError, too
        problems.append(f"{path / 'recipe.toml'}: not read: {error}. {consequence}".rstrip())
    num_steps = None if record is None else planned_steps(record)
    return RecordedRun(
        path=path,
        name=name,
        state="unreadable" if record is None else _state(path, record, metrics, held or is_held),
        record=record,
        recipe=recipe or {},
        has_recipe=recipe is not None,
        metrics=metrics,
        num_steps=num_steps,
        written=_written(path / "metrics.jsonl"),
        problems=tuple(problems),
    )


def planned_steps(record: "RunRecord") -> int | None:
    """The last step of a run; None where its record does not tell."""
    if record.extensions:
        return record.extensions[-1].to_step
    identity = record.identity
    if (most := count_of(identity.get("max_steps"))) is not None:
        return most
    keys = ("num_train_rows", *_ROWS_OF_STEP, "num_train_epochs")
    counts = [count_of(identity.get(key)) for key in keys]
    if None in counts:
        return None
    rows, batch, accumulated, epochs = (count or 0 for count in counts)
    return rows // (batch * accumulated) * epochs


def _state(
    path: Path, record: "RunRecord", metrics: MetricSeries, held: Callable[[Path], bool]
) -> State:
    num_steps = planned_steps(record)
    has_ended = num_steps is None or metrics.last_step >= num_steps
    # Where the figures are lost, the model alone tells; before an extension there was one, too.
    if _has_model(path) and (has_ended or not (metrics.by_name or record.extensions)):
        return "finished"
    return "running" if held(path) else "stopped"


def _has_model(path: Path) -> bool:
    return (path / "model" / "config.json").is_file()


def _metrics_problems(path: Path, metrics: MetricSeries) -> list[str]:
    """What is damaged in the curves of the run in ``path``."""
    file = path / "metrics.jsonl"
    found = []
    if metrics.num_unreadable:
        lines = (
            "1 line is" if metrics.num_unreadable == 1 else f"{metrics.num_unreadable} lines are"
        )
        found.append(f"{file}: {lines} damaged")
    elif not metrics.by_name and (_has_model(path) or any(path.glob("checkpoints/step-*"))):
        lost = "holds no figure" if file.exists() else "missing"
        found.append(f"{file}: {lost}, so the run's figures are lost")
    for name, step in list(metrics.damaged.items())[:_MOST_DAMAGED]:
        found.append(f"{file}: {name} is no finite number, at step {step:,} for the last time")
    if (others := len(metrics.damaged) - _MOST_DAMAGED) > 0:
        found.append(f"{file}: neither are values of {others:,} other metrics")
    return found


def is_held(path: Path) -> bool:
    """Whether a process is training into ``path``, which holds a lock on it while it does."""
    descriptor = None
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    finally:
        if descriptor is not None:
            os.close(descriptor)
    return False


def _train_student_table(path: Path) -> dict[str, Any]:
    with open_regular(path) as file:
        data = file.read(_MOST_TOML_BYTES + 1)
    if len(data) > _MOST_TOML_BYTES:
        raise ValueError(f"more than {_MOST_TOML_BYTES:,} bytes")
    table = tomllib.loads(data.decode("utf-8")).get("train_student", {})
    return table if isinstance(table, dict) else {}


def _written(path: Path) -> datetime | None:
    with suppress(OSError, OverflowError, ValueError):
        return datetime.fromtimestamp(path.stat().st_mtime, UTC)
    return None
