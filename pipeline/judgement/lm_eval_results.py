"""Result files of lm-evaluation-harness: scores by benchmark and metric.

In: one or more JSON files, or directories that ``pipeline evaluate --out`` wrote, of one model; a
benchmark is in one of them. Out: ``BenchmarkResult`` by name. Nothing is judged here: which metric
counts, and whether two models were asked alike, is in ``paired_scores``.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

RESULTS = "results.json"
_MAX_BYTES = 1 << 28
_NO_FILTER = "none"


@dataclass(frozen=True, kw_only=True)
class BenchmarkResult:
    """What a file says of a benchmark: a task, or a group whose tasks' scores are combined."""

    name: str
    file: Path
    metrics: Mapping[str, float]
    """Scores by ``METRIC``, or ``METRIC,FILTER``; NaN or infinite where the harness wrote that."""
    higher_is_better: Mapping[str, bool]
    """By metric, without filter; only where the file says."""
    num_fewshot: int | None
    version: str | None
    num_items: int | None
    """Items that were answered."""
    tasks: tuple[str, ...]
    """The tasks whose items it consists of: its own name, or those of the group."""


def read_results(places: Iterable[Path]) -> dict[str, BenchmarkResult]:
    """Benchmarks by name; tasks that belong to a group are left out if the group has scores.

    Raises ValueError where a file is none of lm-evaluation-harness, and where two files hold the
    same benchmark.
    """
    found: dict[str, BenchmarkResult] = {}
    for place in places:
        path = place / RESULTS if place.is_dir() else place
        for name, result in _read_file(path).items():
            if name in found:
                raise ValueError(
                    f"{path}: {name}: also in {found[name].file}. Give one result of each "
                    "benchmark."
                )
            found[name] = result
    return found


def metric_name(text: str) -> str:
    """``METRIC,none``, as the harness writes it, as ``METRIC``; other filters stay."""
    metric, _, filter_name = text.partition(",")
    return metric if filter_name in ("", _NO_FILTER) else f"{metric},{filter_name}"


def _read_file(path: Path) -> dict[str, BenchmarkResult]:
    fields = _read_json(path)
    results = fields.get("results")
    if not isinstance(results, dict) or not all(isinstance(v, dict) for v in results.values()):
        raise ValueError(
            f"{path}: not a result file of lm-evaluation-harness: it has no object 'results' of "
            "metrics by task. Give the results_*.json that it wrote, or what `pipeline evaluate "
            "--out` wrote."
        )
    groups = _section(fields, "group_subtasks")
    read = {name: _result(path, name, fields, groups) for name in {**results, **groups}}
    scored = {name: result for name, result in read.items() if result.metrics}
    inside = {
        task
        for name in scored
        for task in _below(name, groups)
        if task != name  # some versions list a task as its own only member
    }
    return {name: result for name, result in scored.items() if name not in inside}


def _result(
    path: Path, name: str, fields: dict[str, Any], groups: Mapping[str, Any]
) -> BenchmarkResult:
    leaves = tuple(task for task in _below(name, groups) if not groups.get(task)) or (name,)
    entry = _section(fields, "results").get(name, {}) | _section(fields, "groups").get(name, {})
    for key, value in entry.items():
        if _is_metric(key) and isinstance(value, str) and _is_number(value):
            raise ValueError(
                f"{path}: {name}: {key}: expected a number, found the string {value!r:.100}. "
                "Write it without quotation marks."
            )
    shots = [_section(fields, "n-shot").get(task) for task in (name, *leaves)]
    version = _section(fields, "versions").get(name)
    counts = [_section(fields, "n-samples").get(task) for task in leaves]
    effective = [
        count["effective"]
        for count in counts
        if isinstance(count, dict) and type(count.get("effective")) is int
    ]
    better = _section(fields, "higher_is_better").get(name)
    if not isinstance(better, dict):
        better = _section(fields, "higher_is_better").get(leaves[0])
    return BenchmarkResult(
        name=name,
        file=path,
        metrics={
            metric_name(key): float(value)
            for key, value in entry.items()
            if _is_metric(key) and isinstance(value, int | float) and not isinstance(value, bool)
        },
        higher_is_better={
            key: value for key, value in (better or {}).items() if isinstance(value, bool)
        },
        num_fewshot=next((shot for shot in shots if type(shot) is int), None),
        version=None if version in (None, "N/A", "Yaml") else str(version),
        num_items=sum(effective) if len(effective) == len(leaves) else None,
        tasks=leaves,
    )


def _is_number(text: str) -> bool:
    """Whether it is a number; "N/A", which the harness writes where there is none, is not."""
    try:
        float(text)
    except ValueError:
        return False
    return True


def _is_metric(key: str) -> bool:
    """``METRIC,FILTER``, and no standard error."""
    metric, comma, _ = key.partition(",")
    return bool(comma) and not metric.endswith("_stderr")


def _below(name: str, groups: Mapping[str, Any]) -> list[str]:
    """The members of a group, and those of its groups."""
    found: list[str] = []
    todo = [name]
    while todo:
        members = groups.get(todo.pop())
        for member in members if isinstance(members, list) else []:
            if isinstance(member, str) and member not in found:
                found.append(member)
                todo.append(member)
    return found


def _section(fields: dict[str, Any], name: str) -> dict[str, Any]:
    found = fields.get(name)
    return found if isinstance(found, dict) else {}


def _read_json(path: Path) -> dict[str, Any]:
    """The object in the file; NaN, which the harness writes where there is no score, is read, and
    so is Infinity."""
    try:
        with path.open("rb") as file:
            data = file.read(_MAX_BYTES + 1)
        if len(data) > _MAX_BYTES:
            raise ValueError(f"more than {_MAX_BYTES:,} bytes")
        fields = json.loads(data.decode("utf-8"), parse_constant=float)
    except FileNotFoundError as error:
        raise ValueError(
            f"{path}: there is no such file. Give a result file of lm-evaluation-harness, or a "
            "directory that `pipeline evaluate --out` wrote and finished a task in."
        ) from error
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: not a JSON file: {error}. Copy it again.") from error
    if not isinstance(fields, dict):
        raise ValueError(f"{path}: expected a JSON object, found {type(fields).__name__}.")
    return fields
