"""lm-evaluation-harness in this process: a model is asked the questions of a task.

In: a loaded model and a task with its settings. Out: what the harness makes of it, in its own
format, and the scores of each item. The harness (lm_eval) is an extra, and is imported only here.

The harness scores a text's first token after the id that ends a document, which students, whose
documents do not see each other, never meet there in training: mind that where texts are short.
"""

import json
import logging
import math
import os
import sys
from collections.abc import Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from pipeline.judgement.suite import SuiteTask
from pipeline.students.evaluated_model import EvaluatedModel

_PROGRAM = "HF_ALLOW_CODE_EVAL"  # what tasks that run code want to be set


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
    max_length: int | None = None
    """Tokens of a question with its answer; None is what the model says, or the harness."""
    runs_generated_code: bool = False
    """Whether tasks may run what the model wrote."""


@dataclass(frozen=True, kw_only=True)
class TaskRun:
    """What came of a task."""

    results: dict[str, Any]
    """In the harness's format, ready for JSON; but for the samples."""
    samples: dict[str, list[str]]
    """By task, lines of JSON of its items; a group has several tasks."""


def require_harness() -> None:
    """Raise ValueError where the harness is not installed."""
    if any(find_spec(name) is None for name in ("lm_eval", "accelerate", "peft")):
        raise ValueError(
            "--tasks: lm-evaluation-harness is not installed. Install it with "
            "`pip install 'lm_eval[hf]'`."
        )


def harness_version() -> str:
    """Of the harness that is installed."""
    from importlib.metadata import version

    return version("lm_eval")


class Harness:
    """A model in front of the harness."""

    def __init__(self, evaluated: EvaluatedModel, options: HarnessOptions) -> None:
        require_harness()
        from lm_eval.models.huggingface import HFLM
        from lm_eval.tasks import TaskManager

        from stages.compute.device import choose_device

        self._options = options
        self._tokenizer = evaluated.tokenizer
        path = None if options.include_path is None else str(options.include_path)
        self._manager = TaskManager(include_path=path)
        logging.getLogger("lm_eval").setLevel(logging.ERROR)
        self._model = HFLM(
            evaluated.model.to(choose_device(options.device)),
            backend="causal",
            tokenizer=evaluated.tokenizer,
            batch_size=options.batch_size,
            max_length=_max_length(evaluated.model.config, options.max_length),
        )

    def plan(self, tasks: Sequence[SuiteTask]) -> list[SuiteTask]:
        """``tasks``, patterns as the tasks that they match, once each.

        Raises ValueError for one that the harness does not know, or that cannot be run.
        """
        found: dict[str, SuiteTask] = {}
        for task in tasks:
            for name in _matching(task.task, self._manager):
                found.setdefault(name, replace(task, task=name))
        planned = list(found.values())
        self._require_template(planned)
        self._require_consent(planned)
        return planned

    def run(self, task: SuiteTask, *, with_samples: bool) -> TaskRun:
        """Ask the model all of ``task``, which is one that ``plan`` returned.

        Raises ValueError where the harness would ask it with other examples than are wanted.
        """
        import lm_eval

        loaded = self._manager.load([task.task])
        _require_shots(task, loaded["tasks"])
        groups = loaded.get("groups", {})
        if self._options.runs_generated_code:
            os.environ[_PROGRAM] = "1"
        limits = None if task.max_new_tokens is None else {"max_gen_toks": task.max_new_tokens}
        with redirect_stdout(sys.stderr):  # it prints what it is doing
            results: Any = lm_eval.simple_evaluate(
                model=self._model,
                tasks=[groups[task.task]] if task.task in groups else [*loaded["tasks"].values()],
                task_manager=self._manager,
                num_fewshot=task.num_fewshot,
                limit=self._options.limit,
                gen_kwargs=limits,
                apply_chat_template=task.chat_template,
                fewshot_as_multiturn=task.fewshot_as_multiturn,
                log_samples=with_samples,
                confirm_run_unsafe_code=self._options.runs_generated_code,
            )
        samples = results.pop("samples", {})
        return TaskRun(
            results=json.loads(_dumped(results)),
            samples={
                name: [_sample_line(each) for each in found] for name, found in samples.items()
            },
        )

    def _require_template(self, tasks: Sequence[SuiteTask]) -> None:
        wanting = [task.task for task in tasks if task.chat_template]
        if wanting and not self._tokenizer.chat_template:
            raise ValueError(
                f"--tasks: {wanting[0]} is asked in the chat template, which the model's tokenizer "
                "does not have. Use a suite for base models, or add chat_template.jinja to the "
                "model's directory."
            )

    def _require_consent(self, tasks: Sequence[SuiteTask]) -> None:
        running = [task.task for task in tasks if task.runs_generated_code]
        if running and not self._options.runs_generated_code:
            raise ValueError(
                f"--tasks: {', '.join(running)}: scored by running programs that the model "
                "writes, which can do anything that you can. In a sandbox, add "
                "--run-generated-code; or leave these tasks out."
            )


def metrics_by_task(results: dict[str, Any]) -> dict[str, dict[str, float]]:
    """Numbers by metric, for each task in ``results`` of the harness."""
    return {task: _metrics_of(found) for task, found in results["results"].items()}


def tasks_text(metrics: dict[str, dict[str, float]]) -> str:
    """``metrics_by_task``, a line for each metric."""
    lines = []
    for task, of_task in metrics.items():
        for name, value in of_task.items():
            if not name.endswith("_stderr"):
                error = of_task.get(f"{name}_stderr")
                more = "" if error is None else f" ± {error:.4f}"
                lines.append(f"{task}  {name}  {value:.4f}{more}")
    return "\n".join(lines)


def _require_shots(task: SuiteTask, loaded: dict[str, Any]) -> None:
    """The harness gives no examples to a task whose file says 0, whatever it is asked."""
    if not task.num_fewshot:
        return
    for name, each in loaded.items():
        if each.get_config("num_fewshot") == 0:
            raise ValueError(
                f"--tasks: {name}: num_fewshot is {task.num_fewshot}, but the task's own file says "
                "0, which the harness does not change. Set it to 0 in the suite, or add a task of "
                "your own with --include-path."
            )


def _max_length(config: Any, wanted: int | None) -> int | None:
    """What is wanted, as far as the model has positions for it; students have no limit."""
    positions = getattr(config, "max_position_embeddings", None)
    return wanted if wanted is None or positions is None else min(wanted, positions)


def _matching(task: str, manager: Any) -> list[str]:
    names: list[str] = manager.match_tasks([task])
    if not names:
        raise ValueError(
            f"--tasks: lm-evaluation-harness has no task {task!r}. `lm_eval ls tasks` lists its "
            "tasks; --include-path adds a directory of custom task files."
        )
    return names


def _sample_line(sample: dict[str, Any]) -> str:
    """An item as the harness writes it into ``samples_*.jsonl``."""
    from lm_eval.utils import sanitize_list

    arguments = {
        f"gen_args_{number}": {f"arg_{place}": value for place, value in enumerate(request)}
        for number, request in enumerate(sample["arguments"])
    }
    texts = {key: sanitize_list(sample[key]) for key in ("resps", "filtered_resps")}
    return _dumped(sample | texts | {"arguments": arguments, "target": str(sample["target"])})


def _dumped(value: Any) -> str:
    from lm_eval.utils import handle_non_serializable

    return json.dumps(value, default=handle_non_serializable, ensure_ascii=False)


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
