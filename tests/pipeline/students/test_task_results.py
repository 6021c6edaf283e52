"""An evaluation task by task: what is written, resumed and refused; student and teacher alike."""

import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipeline.judgement.lm_eval_results import read_results
from pipeline.judgement.logged_samples import read_items
from pipeline.judgement.suite import SuiteTask
from pipeline.students.evaluated_model import (
    EvaluatedModel,
    load_evaluated_student,
    load_evaluated_teacher,
)
from pipeline.students.lm_eval_harness import Harness, HarnessOptions, TaskRun
from pipeline.students.task_results import run_tasks
from tests.support.command_line import done, run
from tests.support.students import publish_student
from tests.support.tiny_tasks import write_tiny_tasks

pytest.importorskip("lm_eval", reason="lm-evaluation-harness is not installed")

_TEMPLATE = "{% for message in messages %}{{ message.role }}: {{ message.content }} {% endfor %}"


@pytest.fixture(scope="module")
def student(tiny_cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return publish_student(tiny_cache, tmp_path_factory.mktemp("run"))


@pytest.fixture(scope="module")
def evaluated(student: Path) -> EvaluatedModel:
    return load_evaluated_student(student)


@pytest.fixture(scope="module")
def tasks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_tasks(tmp_path_factory.mktemp("tasks"))


@pytest.fixture(autouse=True)
def only_own_tasks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The harness reads thousands of task files otherwise, which takes seconds."""
    import lm_eval.tasks

    own = functools.partial(lm_eval.tasks.TaskManager, include_defaults=False)
    monkeypatch.setattr(lm_eval.tasks, "TaskManager", own)
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "datasets")


def options(tasks: Path, **changes: Any) -> HarnessOptions:
    settings: dict[str, Any] = {"include_path": tasks, "limit": None, "batch_size": 4}
    return HarnessOptions(**(settings | {"device": "cpu"} | changes))


class Interrupted(Exception):
    """Stands for whatever kills the process."""


@pytest.fixture(scope="module")
def real_run() -> Callable[..., TaskRun]:
    return Harness.run


def interrupt_at(
    monkeypatch: pytest.MonkeyPatch, real: Callable[..., TaskRun], task_name: str
) -> list[str]:
    """Tasks are run up to ``task_name``; returns the names of those that were."""
    asked = []

    def run_or_die(self: Harness, task: SuiteTask, *, with_samples: bool) -> TaskRun:
        if task.task == task_name:
            raise Interrupted
        asked.append(task.task)
        return real(self, task, with_samples=with_samples)

    monkeypatch.setattr(Harness, "run", run_or_die)
    return asked


def contents(out: Path) -> dict[str, Any]:
    """What an evaluation wrote, times left out."""
    found: dict[str, Any] = {}
    for path in sorted(out.rglob("*.json*")):
        lines = path.read_text().splitlines()
        if path.suffix == ".json":
            fields = json.loads("".join(lines))
            for key in ("date", "total_evaluation_time_seconds"):
                fields.pop(key, None)
            found[str(path.relative_to(out))] = fields
        else:
            found[str(path.relative_to(out))] = lines
    return found


def test_a_killed_evaluation_resumes_at_the_first_task_that_lacks(
    evaluated: EvaluatedModel,
    tasks: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    real_run: Callable[..., TaskRun],
) -> None:
    chosen = [SuiteTask(task=name) for name in ("tiny_group", "tiny_generate")]
    whole = run_tasks(evaluated, chosen, options(tasks), out=tmp_path / "whole")
    asked = interrupt_at(monkeypatch, real_run, "tiny_generate")
    with pytest.raises(Interrupted):
        run_tasks(evaluated, chosen, options(tasks), out=tmp_path / "killed")
    assert [path.name for path in (tmp_path / "killed/tasks").iterdir()] == ["tiny_group.json"]
    assert asked == ["tiny_group"]
    asked = interrupt_at(monkeypatch, real_run, "none")
    lines: list[str] = []
    run_tasks(evaluated, chosen, options(tasks), out=tmp_path / "killed", report=lines.append)
    assert asked == ["tiny_generate"]
    assert lines == ["tiny_group: 1 of 2, was there", "tiny_generate: 2 of 2"]
    assert contents(tmp_path / "killed") == contents(tmp_path / "whole")
    assert whole["results"].keys() == {"tiny_group", "tiny_choice", "tiny_more", "tiny_generate"}


def test_what_is_written_is_what_win_and_tie_reads(
    evaluated: EvaluatedModel, tasks: Path, tmp_path: Path
) -> None:
    chosen = [SuiteTask(task="tiny_group"), SuiteTask(task="tiny_generate")]
    run_tasks(evaluated, chosen, options(tasks), out=tmp_path)
    found = read_results([tmp_path])
    assert found.keys() == {"tiny_group", "tiny_generate"}
    assert found["tiny_group"].num_items == 6
    items = read_items(found["tiny_group"], "acc")
    assert items is not None
    assert len(items) == 6
    mean = sum(score for score, _ in items.values()) / 6
    assert mean == pytest.approx(found["tiny_group"].metrics["acc"])
    assert all(digest for _, digest in items.values())


def test_what_the_harness_itself_writes_is_read_alike(
    evaluated: EvaluatedModel, tasks: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By its own writer, from the same answers: other names of files, the same scores."""
    import lm_eval
    from lm_eval.loggers import EvaluationTracker

    found: list[Any] = []
    real = lm_eval.simple_evaluate

    def kept(**arguments: Any) -> Any:
        found.append(real(**arguments))
        return dict(found[0])  # of which the samples are taken away

    monkeypatch.setattr(lm_eval, "simple_evaluate", kept)
    run_tasks(evaluated, [SuiteTask(task="tiny_group")], options(tasks), out=tmp_path / "ours")
    (results,) = found
    samples = results.pop("samples")
    tracker = EvaluationTracker(output_path=str(tmp_path / "theirs"))
    tracker.general_config_tracker.model_name_sanitized = "tiny"
    tracker.save_results_aggregated(results=results, samples=samples)
    for task, lines in samples.items():
        tracker.save_results_samples(task_name=task, samples=lines)
    (path,) = (tmp_path / "theirs/tiny").glob("results_*.json")
    theirs, ours = (
        read_results([path])["tiny_group"],
        read_results([tmp_path / "ours"])["tiny_group"],
    )
    assert theirs.metrics == ours.metrics
    assert (theirs.version, theirs.num_fewshot, theirs.num_items) == (
        ours.version,
        ours.num_fewshot,
        ours.num_items,
    )
    assert read_items(theirs, "acc") == read_items(ours, "acc") is not None


def test_settings_of_a_suite_reach_the_harness(
    evaluated: EvaluatedModel, tasks: Path, tmp_path: Path
) -> None:
    task = SuiteTask(task="tiny_generate", num_fewshot=2, max_new_tokens=3)
    found = run_tasks(evaluated, [task], options(tasks), out=tmp_path)
    assert found["n-shot"] == {"tiny_generate": 2}
    arguments = json.loads((tmp_path / "samples_tiny_generate.jsonl").read_text().splitlines()[0])[
        "arguments"
    ]["gen_args_0"]
    assert arguments["arg_1"]["max_gen_toks"] == 3
    assert arguments["arg_1"]["until"] == ["<|endoftext|>"]
    assert arguments["arg_0"].count("\n\n") == 2


def test_examples_that_the_harness_would_leave_out_are_refused(
    evaluated: EvaluatedModel, tasks: Path
) -> None:
    with pytest.raises(ValueError, match="tiny_zero: num_fewshot is 3, but the task's own file"):
        run_tasks(evaluated, [SuiteTask(task="tiny_zero", num_fewshot=3)], options(tasks))
    found = run_tasks(evaluated, [SuiteTask(task="tiny_zero", num_fewshot=0)], options(tasks))
    assert found["n-shot"] == {"tiny_zero": 0}


def test_a_conversation_is_asked_in_the_template_or_refused(
    student: Path, tasks: Path, tmp_path: Path
) -> None:
    evaluated = load_evaluated_student(student)
    task = SuiteTask(
        task="tiny_choice", num_fewshot=1, chat_template=True, fewshot_as_multiturn=True
    )
    with pytest.raises(ValueError, match=r"tokenizer does not have. Use a suite for base models"):
        run_tasks(evaluated, [task], options(tasks))
    evaluated.tokenizer.chat_template = _TEMPLATE
    run_tasks(evaluated, [task], options(tasks), out=tmp_path)
    sample = json.loads((tmp_path / "samples_tiny_choice.jsonl").read_text().splitlines()[0])
    text = sample["arguments"]["gen_args_0"]["arg_0"]
    assert text.count("user: ") == 2
    assert text.count("assistant: ") == 1


def test_other_settings_are_refused(evaluated: EvaluatedModel, tasks: Path, tmp_path: Path) -> None:
    as_it_is = SuiteTask(task="tiny_choice")
    run_tasks(evaluated, [as_it_is], options(tasks), out=tmp_path)
    few_shots = SuiteTask(task="tiny_choice", num_fewshot=1)
    cases: list[tuple[SuiteTask, dict[str, Any], str]] = [
        (few_shots, {}, "num_fewshot: None, now 1"),
        (as_it_is, {"limit": 2}, "limit: None, now 2"),
        (as_it_is, {"max_length": 64}, "max_length: None, now 64"),
    ]
    for task, changes, key in cases:
        with pytest.raises(ValueError, match=f"tiny_choice.json: evaluated with another {key}"):
            run_tasks(evaluated, [task], options(tasks, **changes), out=tmp_path)


def test_another_model_is_refused_even_for_another_task(
    evaluated: EvaluatedModel, tasks: Path, tmp_path: Path, tiny_cache: Path
) -> None:
    run_tasks(evaluated, [SuiteTask(task="tiny_choice")], options(tasks), out=tmp_path)
    teacher = load_evaluated_teacher(tiny_cache.parent / "teacher")
    with pytest.raises(ValueError, match="evaluated with another model_sha256"):
        run_tasks(teacher, [SuiteTask(task="tiny_more")], options(tasks), out=tmp_path)


def test_a_damaged_result_is_named(evaluated: EvaluatedModel, tasks: Path, tmp_path: Path) -> None:
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks/tiny_choice.json").write_text("{}")
    with pytest.raises(ValueError, match=r"tiny_choice\.json: damaged"):
        run_tasks(evaluated, [SuiteTask(task="tiny_choice")], options(tasks), out=tmp_path)


def test_programs_of_the_model_are_not_run_without_consent(
    evaluated: EvaluatedModel, tasks: Path
) -> None:
    task = SuiteTask(task="tiny_choice", runs_generated_code=True)
    with pytest.raises(ValueError, match="tiny_choice: scored by running programs"):
        run_tasks(evaluated, [task], options(tasks))


def test_student_and_teacher_by_command_then_judged(
    student: Path, tasks: Path, tmp_path: Path, tiny_cache: Path
) -> None:
    suite = tmp_path / "mine.toml"
    suite.write_text(
        '[[tasks]]\ntask = "tiny_choice"\nmetric = "acc"\nnum_fewshot = 1\n'
        '[[tasks]]\ntask = "tiny_more"\n'
    )
    shared = ("--tasks", suite, "--include-path", tasks, "--device", "cpu")
    done("evaluate", student, *shared, "--out", tmp_path / "student")
    teacher = tiny_cache.parent / "teacher"
    printed = done(
        "evaluate", teacher, "--is-teacher", *shared, "--out", tmp_path / "teacher"
    ).stdout
    assert "tiny_choice  acc  " in printed
    results = tmp_path / "teacher/results.json"
    fields = json.loads(results.read_text())
    for task in ("tiny_choice", "tiny_more"):  # a random model may have 0, which is refused
        fields["results"][task]["acc,none"] = 1.0
    results.write_text(json.dumps(fields))
    for samples in (tmp_path / "teacher").glob("samples_*"):
        samples.unlink()
    arguments = ("win-and-tie", tmp_path / "student", "--teacher", tmp_path / "teacher")
    found = json.loads(done(*arguments, "--suite", suite, "--json").stdout)
    assert found["benchmark_set"] == {"name": "mine", "size": 2}
    assert [each["num_fewshot"] for each in found["benchmarks"]] == [1, 0]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--cache", "cache", "--out", "out"), "need --tasks"),
        (("--cache", "cache", "--tasks", "a", "--is-teacher"), "leave out --cache"),
        (("--tasks", ","), "names no task"),
    ],
)
def test_options_that_do_not_fit_are_a_usage_error(
    tiny_cache: Path, options: tuple[str, ...], message: str
) -> None:
    words = [str(tiny_cache) if word == "cache" else word for word in options]
    result = run("evaluate", tiny_cache.parent, *words)
    assert (result.exit_code, message in result.stderr) == (2, True), result.stderr


def test_what_is_no_teacher_is_refused(tmp_path: Path, tasks: Path) -> None:
    result = run("evaluate", tmp_path, "--is-teacher", "--tasks", "a", "--include-path", tasks)
    assert (result.exit_code, "not a model directory" in result.stderr) == (1, True), result.stderr
