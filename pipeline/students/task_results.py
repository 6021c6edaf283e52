"""An evaluation task by task, each result written as soon as it is there.

In: a harness, its tasks and a directory. Out: ``tasks/TASK.json`` and ``samples_TASK.jsonl`` of
each, in the harness's format, and ``results.json``, which has them all. A task whose file is there
is not run again, if it was run with the same model and settings; with others it is refused, as one
directory holds scores that belong together.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pipeline.judgement.lm_eval_results import RESULTS
from pipeline.judgement.logged_samples import safe_name
from pipeline.judgement.suite import SuiteTask
from pipeline.students.evaluated_model import EvaluatedModel
from pipeline.students.lm_eval_harness import Harness, HarnessOptions, harness_version

_TASKS = "tasks"
_ASKED = "asked"
"""Key of a task's file: what its scores depend on."""
_MERGED = (
    *("results", "groups", "group_subtasks", "configs", "versions", "n-shot"),
    *("higher_is_better", "n-samples"),
)
_NOT_COMPARED = ("metric", "part", "runs_generated_code")  # they change no score


def run_tasks(
    evaluated: EvaluatedModel,
    tasks: Sequence[SuiteTask],
    options: HarnessOptions,
    *,
    out: Path | None = None,
    report: Callable[[str], None] = lambda _: None,
) -> dict[str, Any]:
    """The results of all ``tasks`` in the harness's format, which are in ``out``, too, if given.

    ``report`` is told what is done and what was there. Raises ValueError where a task is not known
    or ``out`` holds results of another model or of other settings.
    """
    harness = Harness(evaluated, options)
    planned = harness.plan(tasks)
    done = {} if out is None else _read_done(out, evaluated, options, planned)
    for number, task in enumerate(planned, 1):
        if task.task in done:
            report(f"{task.task}: {number} of {len(planned)}, was there")
            continue
        report(f"{task.task}: {number} of {len(planned)}")
        run = harness.run(task, with_samples=out is not None)
        done[task.task] = run.results | {_ASKED: _asked(evaluated, options, task)}
        if out is not None:
            _publish(out, task.task, done[task.task], run.samples)
    merged = _merge(list(done.values()))
    if out is not None:
        from cache_format.storage.atomic import publish_bytes

        publish_bytes(out / RESULTS, _json_bytes(merged))
    return merged


def _asked(evaluated: EvaluatedModel, options: HarnessOptions, task: SuiteTask) -> dict[str, Any]:
    settings = {key: value for key, value in asdict(task).items() if key not in _NOT_COMPARED}
    return settings | {
        "model_sha256": evaluated.sha256,
        "limit": options.limit,
        "max_length": options.max_length,
        "lm_eval": harness_version(),
    }


def _publish(out: Path, task: str, results: dict[str, Any], samples: dict[str, list[str]]) -> None:
    """Items first: the task's own file says that it is done."""
    from cache_format.storage.atomic import make_directory, publish_bytes

    make_directory(out / _TASKS)
    for name, lines in samples.items():
        data = "".join(f"{line}\n" for line in lines).encode("utf-8")
        publish_bytes(out / f"samples_{safe_name(name)}.jsonl", data)
    publish_bytes(out / _TASKS / f"{safe_name(task)}.json", _json_bytes(results))


def _read_done(
    out: Path, evaluated: EvaluatedModel, options: HarnessOptions, planned: Sequence[SuiteTask]
) -> dict[str, dict[str, Any]]:
    """The results in ``out``, by task."""
    wanted = {task.task: _asked(evaluated, options, task) for task in planned}
    done = {}
    for path in sorted((out / _TASKS).glob("*.json")):
        try:
            results = json.loads(path.read_bytes())
            asked = results[_ASKED]
            name = asked["task"]
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise ValueError(
                f"{path}: damaged, or not written by this command ({error!r}). Delete it to "
                "evaluate the task again."
            ) from error
        # Of a task that is not asked for now, the model alone has to be this one.
        expected = wanted.get(name, asked | {"model_sha256": evaluated.sha256})
        for key in expected:
            if asked.get(key) != expected[key]:
                raise ValueError(
                    f"{path}: evaluated with another {key}: {asked.get(key)!r}, now "
                    f"{expected[key]!r}. Choose another --out, or delete the file to evaluate the "
                    "task again."
                )
        done[name] = results
    return done


def _merge(of_tasks: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """One file of all; what is not by task is that of the last."""
    merged: dict[str, Any] = {key: {} for key in _MERGED}
    for results in of_tasks:
        for key, value in results.items():
            if key in _MERGED and isinstance(value, dict):
                merged[key] |= value
            elif key != _ASKED:
                merged[key] = value
    return merged


def _json_bytes(value: dict[str, Any]) -> bytes:
    return (json.dumps(value, indent=1, ensure_ascii=False) + "\n").encode("utf-8")
