"""Result files as lm-evaluation-harness writes them, from a few scores."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any


def write_results(
    path: Path, scores: Mapping[str, float], *, metric: str = "acc", **sections: Any
) -> Path:
    """A file with ``scores`` by task; ``sections`` replace or add parts of it."""
    fields: dict[str, Any] = {
        "results": {
            task: {"alias": task, f"{metric},none": score, f"{metric}_stderr,none": "N/A"}
            for task, score in scores.items()
        },
        "group_subtasks": {task: [] for task in scores},
        "configs": {},
        "versions": dict.fromkeys(scores, 1.0),
        "n-shot": dict.fromkeys(scores, 0),
        "higher_is_better": {task: {metric: True} for task in scores},
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(fields | sections))
    return path


def write_samples(
    path: Path, scores: Sequence[float], *, metric: str = "acc", filter_name: str = "none"
) -> Path:
    """The file of a task's items, in any order."""
    lines = [
        json.dumps(
            {
                "doc_id": number,
                "doc": {"question": number},
                "filter": filter_name,
                "metrics": [metric],
                "doc_hash": f"hash {number}",
                metric: score,
            }
        )
        for number, score in reversed(list(enumerate(scores)))
    ]
    path.write_text("\n".join(lines) + "\n")
    return path
