"""Scores of single items, from the files ``samples_*.jsonl`` that lm-evaluation-harness logs.

In: a benchmark's result and its metric. Out: score and hash of each item by task and document id,
or None where no items were logged. They lie beside the result file: ``samples_TASK.jsonl``, or with
the date of the result file, ``samples_TASK_DATE.jsonl``.
"""

import json
import math
import re
from pathlib import Path
from typing import Any

from pipeline.judgement.lm_eval_results import BenchmarkResult

Items = dict[tuple[str, int], tuple[float, str | None]]
"""Score, and hash of the question where it is logged, by task and document id."""

_NO_FILTER = "none"
_UNSAFE = re.compile(r"[^\w.-]", re.ASCII)


def safe_name(task: str) -> str:
    """``task`` as the name of a file, as ``pipeline evaluate --out`` writes it."""
    return _UNSAFE.sub("_", task)


def read_items(result: BenchmarkResult, metric: str) -> Items | None:
    """The items of ``result``, or None where those of one of its tasks, or their scores, lack.

    Raises ValueError where a file is damaged.
    """
    items: Items = {}
    for task in result.tasks:
        path = _samples_file(result.file, task)
        if path is None:
            return None
        of_task = _read_task(path, *_split(metric))
        if not of_task:
            return None
        items |= {(task, number): item for number, item in of_task.items()}
    return items


def _split(metric: str) -> tuple[str, str]:
    name, _, filter_name = metric.partition(",")
    return name, filter_name or _NO_FILTER


def _samples_file(results: Path, task: str) -> Path | None:
    date = results.stem.removeprefix("results")  # _2026-11-29T21-04-11.178, or nothing
    names = [safe_name(task)] if "/" in task or "\0" in task else [task, safe_name(task)]
    paths = [results.with_name(f"samples_{name}{date}.jsonl") for name in names]
    return next((path for path in paths if path.is_file()), None)


def _read_task(path: Path, metric: str, filter_name: str) -> dict[int, tuple[float, str | None]]:
    found: dict[int, tuple[float, str | None]] = {}
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            try:
                sample = json.loads(line)
                is_wanted = sample.get("filter", filter_name) == filter_name
                score: Any = sample.get(metric) if is_wanted else None
            except (ValueError, AttributeError, RecursionError) as error:
                raise ValueError(
                    f"{path}, line {number}: damaged: {error}. Copy it again, or move it away to "
                    "judge without items."
                ) from error
            number_of_item = sample.get("doc_id")
            if _is_score(score) and type(number_of_item) is int:
                digest = sample.get("doc_hash")
                found[number_of_item] = float(score), digest if isinstance(digest, str) else None
    return found


def _is_score(value: Any) -> bool:
    """What an item scored; some metrics log something else, of which a score is computed later."""
    return isinstance(value, int | float) and math.isfinite(value)
