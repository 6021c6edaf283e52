"""A student in lm-evaluation-harness, in this process.

In: a run or model directory and names of tasks. Out: the tasks' metrics, as numbers and as a table.
The harness (lm_eval) is an extra, and is imported only here.

The harness scores a text's first token after the id that ends a document, which students, whose
documents do not see each other, never meet there in training: mind that where texts are short.
"""

import logging
import math
import sys
from collections.abc import Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from pipeline.students.student_files import load_student_model, load_student_tokenizer


@dataclass(frozen=True, kw_only=True)
class HarnessOptions:
    """What the harness is told beside the tasks."""

    include_path: Path | None
    """Directory with task files of one's own."""
    limit: int | None
    """The most examples of a task; None takes all."""
    batch_size: int
    """Requests in one forward pass."""
    device: str
    """``auto``, ``cpu``, ``cuda`` or ``cuda:N``."""


def require_harness() -> None:
    """Raise ValueError where the harness is not installed."""
    if any(find_spec(name) is None for name in ("lm_eval", "accelerate", "peft")):
        raise ValueError(
            "--tasks: lm-evaluation-harness is not installed. Install it with "
            "`pip install 'lm_eval[hf]'`."
        )


def run_tasks(run: Path, tasks: Sequence[str], options: HarnessOptions) -> dict[str, Any]:
    """Metrics by task. Raises ValueError if ``run`` holds no student or a task is not known."""
    require_harness()
    import lm_eval
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    from stages.compute.device import choose_device

    device = choose_device(options.device)
    # Loaded here: by its path the harness would let the directory choose what code reads it.
    student: Any = load_student_model(run).to(device)
    tokenizer = load_student_tokenizer(run, student.config.head_rows)
    include_path = None if options.include_path is None else str(options.include_path)
    manager = TaskManager(include_path=include_path)
    names = [name for task in tasks for name in _matching(task, manager)]
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    with redirect_stdout(sys.stderr):  # it prints what it is doing
        results: Any = lm_eval.simple_evaluate(
            model=HFLM(
                student, backend="causal", tokenizer=tokenizer, batch_size=options.batch_size
            ),
            tasks=list(dict.fromkeys(names)),
            task_manager=manager,
            limit=options.limit,
            log_samples=False,
        )
    return {task: _metrics_of(found) for task, found in results["results"].items()}


def tasks_text(results: dict[str, Any]) -> str:
    """``results`` of ``run_tasks``, a line for each metric."""
    lines = []
    for task, metrics in results.items():
        for name, value in metrics.items():
            if not name.endswith("_stderr"):
                error = metrics.get(f"{name}_stderr")
                more = "" if error is None else f" ± {error:.4f}"
                lines.append(f"{task}  {name}  {value:.4f}{more}")
    return "\n".join(lines)


def _matching(task: str, manager: Any) -> list[str]:
    names: list[str] = manager.match_tasks([task])
    if not names:
        raise ValueError(
            f"--tasks: lm-evaluation-harness has no task {task!r}. `lm_eval ls tasks` lists its "
            "tasks; --include-path adds a directory of custom task files."
        )
    return names


def _metrics_of(found: dict[str, Any]) -> dict[str, float]:
    """Numbers by metric; the harness names them ``metric,filter``.

    What is NaN or infinite, as the error of a single example, is no number that JSON has.
    """
    metrics = {}
    for key, value in found.items():
        name, _, filter_name = key.partition(",")
        if filter_name and isinstance(value, int | float) and math.isfinite(value):
            label = name if filter_name == "none" else f"{name} ({filter_name})"
            if filter_name != "none" and name.endswith("_stderr"):
                label = f"{name.removesuffix('_stderr')} ({filter_name})_stderr"
            metrics[label] = float(value)
    return metrics
