"""The figures of a report for programs: one table, in the form of the files of results.

``benchmarks/result_files.py`` of the repository describes the form and renders it. Beside its
``rows``, ``runs`` has the newest validation of each run, from which all else was computed.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from pipeline.run_report.recorded.paired_differences import paired_difference
from pipeline.run_report.recorded.recorded_run import RecordedRun
from pipeline.run_report.recorded.seed_groups import SeedGroup, Spread, final_figure
from pipeline.run_report.recorded.settings import SEED
from pipeline.run_report.report import Report
from pipeline.run_report.results_tables import PAIRED, paired_with, result_columns

_SHOWN_ENVIRONMENT = ("device", "torch", "xlstm-distill", "commit")
_SHOWN_DIGITS = 12
"""Of a version or a commit."""


def summary(report: Report, command: str) -> dict[str, Any]:
    """JSON. Raises ValueError where ``report`` is of runs that do not compare with each other."""
    if len(report.sets) != 1:
        raise ValueError(
            f"{len(report.sets)} tables of results: a summary has one. Name runs that learned from "
            "one cache and were validated on the same rows."
        )
    (found,) = report.sets
    columns = result_columns(found)
    baseline = paired_with(found, report.baseline)
    runs = [run for group in found.groups for run in group.runs]
    dates = [run.written for run in runs if run.written is not None]
    return {
        "command": command,
        "date": f"{max(dates):%Y-%m-%d}" if dates else None,
        "environment": "; ".join(dict.fromkeys(map(_environment, runs))),
        "cache_id": found.cache_id,
        "validation_rows": found.num_rows,
        "baseline": baseline.name if baseline else None,
        "notes": list(report.notes),
        "rows_are": "recipe",
        "columns": {
            "num_runs": {"heading": "runs", "format": "d"},
            **{_key(key): _column(*column) for key, column in columns.items()},
            **{
                _difference(key): _column(f"{columns[key][0]}, to {baseline.name}", columns[key][1])
                for key in PAIRED
                if baseline and key in columns
            },
        },
        "rows": [_row(group, baseline, columns) for group in found.groups],
        "runs": [_run(run, group, columns) for group in found.groups for run in group.runs],
    }


def _row(
    group: SeedGroup, baseline: SeedGroup | None, columns: Mapping[str, tuple[str, str]]
) -> dict[str, Any]:
    row: dict[str, Any] = {"name": group.name, "num_runs": len(group.counted)}
    row |= {"seeds": group.seeds, "is_finished": group.is_finished}
    spreads = {_key(key): (group.final(key), columns[key][1]) for key in columns}
    if baseline is not None and group is not baseline:
        spreads |= {
            _difference(key): (paired_difference(group, baseline, key), columns[key][1])
            for key in PAIRED
            if key in columns
        }
    return row | {key: _figure(each, form) for key, (each, form) in spreads.items() if each}


def _run(
    run: RecordedRun, group: SeedGroup, columns: Mapping[str, tuple[str, str]]
) -> dict[str, Any]:
    figures = {_key(key): final_figure(run, key) for key in columns}
    seed = run.identity.get(SEED)
    return {"name": run.name, "recipe": group.name, "seed": seed, "state": run.state, **figures}


def _figure(spread: Spread, form: str) -> dict[str, Any]:
    scale = 100 if form.endswith("%") else 1
    deviation = None if spread.deviation is None else scale * spread.deviation
    return {"mean": scale * spread.mean, "deviation": deviation, "num_runs": spread.num_runs}


def _column(heading: str, form: str) -> dict[str, str]:
    if not form.endswith("%"):
        return {"heading": heading, "format": form}
    return {"heading": heading, "format": form.replace("%", "f"), "unit": " %"}


def _key(metric: str) -> str:
    return metric.partition("/")[2]


def _difference(metric: str) -> str:
    return f"{_key(metric)}_difference"


def _environment(run: RecordedRun) -> str:
    there = run.record.environment if run.record and run.record.environment else {}
    shown: Sequence[str] = [
        there[key] if key == "device" else f"{key} {there[key][:_SHOWN_DIGITS]}"
        for key in _SHOWN_ENVIRONMENT
        if key in there
    ]
    return ", ".join(shown) or "not recorded"
