"""A sweep before it runs: its runs, what sets them apart, and what they will take.

In: checked runs and what was measured. Out: text, and the fields of the event "done" of
``--dry-run``: ``dry_run`` (true), ``out``, ``runs`` (each ``name``, ``seed``, ``settings``,
``state``, ``steps``, ``tokens``, ``seconds``), ``seconds`` of all that is left, ``bytes``.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.ablation.planning.checks import CheckedRun
from pipeline.ablation.planning.planned_runs import Plan, Point
from pipeline.ablation.planning.run_size import (
    Measured,
    mean_measured,
    total_bytes,
    total_seconds,
)
from pipeline.reporting.lines import short, size
from pipeline.run_report.table import Cell, Table, quantity
from pipeline.run_report.table_text import table_text

_UNKNOWN = "–"


@dataclass(frozen=True, kw_only=True)
class Overview:
    """See the top of the file."""

    plan: Plan
    out: Path
    runs: Sequence[CheckedRun]
    measured: Mapping[str, Measured]
    """By point."""
    num_slots: int

    @property
    def left(self) -> list[CheckedRun]:
        """Those that are not finished."""
        return [each for each in self.runs if each.state != "finished"]

    def seconds_of(self, checked: CheckedRun) -> float | None:
        """Of a whole run; by the mean speed of others where nothing was measured of it."""
        found = self.measured.get(checked.run.point) or mean_measured(self.measured)
        return found.seconds(checked.size)

    @property
    def seconds_left(self) -> float | None:
        """Until all have finished; those that have begun are counted whole."""
        seconds = [self.seconds_of(each) for each in self.left]
        if None in seconds:
            return None
        return total_seconds([each or 0.0 for each in seconds], self.num_slots)

    @property
    def bytes_left(self) -> int:
        """What they will need on the disk at most, as far as it is known."""
        configs = [each.run.config for each in self.left]
        return total_bytes(configs, [self.measured.get(each.run.point) for each in self.left])

    def sentence(self) -> str:
        """How much is left."""
        num_left, num_runs = len(self.left), len(self.runs)
        tokens = sum(each.size.tokens for each in self.left)
        text = f"{num_runs} run{'' if num_runs == 1 else 's'}"
        if num_left < num_runs:
            text += f", {num_runs - num_left} finished"
        text += f": {short(tokens)} tokens to train on"
        if self.num_slots > 1:
            text += f", {self.num_slots} runs at a time"
        if (seconds := self.seconds_left) is not None and self.left:
            text += f"; about {duration(seconds)}"
        if self.bytes_left:
            text += f", {size(self.bytes_left)} of disk at most"
        return text + "."

    def table(self) -> str:
        """A line for each point."""
        states = {each.run.name: each for each in self.runs}
        rows = []
        for point in self.plan.points:
            first = states[point.runs[0].name]
            seconds = self.seconds_of(first)
            texts = (
                ", ".join(str(run.seed) for run in point.runs),
                f"{first.size.num_steps:,}",
                short(first.size.tokens),
                _UNKNOWN if seconds is None else quantity(seconds, "seconds"),
                _progress([states[run.name] for run in point.runs]),
            )
            name = Cell(text=point.name, is_name=True)
            settings = Cell(text=settings_text(point), is_name=True)
            rows.append((name, *(Cell(text=text) for text in texts), settings))
        headings = ("name", "seeds", "steps", "tokens", "time of a run", "finished", "differs by")
        return table_text(Table(title="Runs", headings=headings, rows=tuple(rows)))

    def fields(self) -> dict[str, Any]:
        """As JSON values."""
        points = {point.name: point for point in self.plan.points}
        return {
            "dry_run": True,
            "out": str(self.out),
            "runs": [
                {
                    "name": each.run.name,
                    "seed": each.run.seed,
                    "settings": dict(points[each.run.point].settings),
                    "state": each.state,
                    "steps": each.size.num_steps,
                    "tokens": each.size.tokens,
                    "seconds": self.seconds_of(each),
                }
                for each in self.runs
            ],
            "seconds": self.seconds_left,
            "bytes": self.bytes_left,
        }


def duration(seconds: float) -> str:
    """``seconds`` in the unit in which people plan."""
    for length, unit in ((86_400, "days"), (3_600, "hours"), (60, "minutes")):
        if seconds >= 1.5 * length:
            return f"{seconds / length:.1f} {unit}"
    return f"{seconds:.0f} seconds"


def settings_text(point: Point) -> str:
    """In what ``point`` differs from the base."""
    shown = (
        f"{key.removeprefix('train_student.')}={json.dumps(value, default=str)}"
        for key, value in point.settings.items()
    )
    return " ".join(shown) or "nothing"


def _progress(runs: Sequence[CheckedRun]) -> str:
    num_finished = sum(each.state == "finished" for each in runs)
    num_begun = sum(each.state == "begun" for each in runs)
    begun = f", {num_begun} begun" if num_begun else ""
    return f"{num_finished} of {len(runs)}{begun}"
