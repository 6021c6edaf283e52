"""``pipeline evaluate``: compare a student with its teacher, evaluate it on tasks or by needles."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pipeline.options.cache_location import RUN, CacheLocation, LocalPath
from pipeline.options.evaluation_options import batch_size_option, device_option, rows_option
from pipeline.options.reporting_options import require_writable_place
from pipeline.options.token_lengths import token_lengths
from pipeline.runtime.silence_libraries import silence_libraries

if TYPE_CHECKING:
    from cache_format.reader import Cache
    from pipeline.judgement.suite import Suite
    from pipeline.students.evaluation import EvalOptions
    from pipeline.students.lm_eval_harness import HarnessOptions
    from pipeline.students.needles.probe import NeedleOptions
    from pipeline.students.student_files import StudentFiles


@click.command()
@click.argument("run", type=RUN)
@click.option(
    "--cache",
    "caches",
    type=CacheLocation(exists=True),
    multiple=True,
    metavar="CACHE",
    help="A cache of the student's teacher, or its URL. Repeat it for the figures on several, and "
    "on all together.",
)
@rows_option()
@click.option(
    "--tasks",
    metavar="NAME,…",
    help="Tasks of lm-evaluation-harness, separated by commas, or a suite: paper-base, "
    "paper-instruct, or a TOML file; SUITE:PART takes a part of it.",
)
@click.option(
    "--out",
    type=LocalPath(file_okay=False),
    help="Directory for the result of each task; the same command resumes at the first that it "
    "lacks.",
)
@click.option(
    "--is-teacher",
    is_flag=True,
    help="RUN is the directory of a teacher, to be compared with; needs --tasks.",
)
@click.option(
    "--run-generated-code",
    is_flag=True,
    help="Let tasks run programs that the model writes. Use a sandbox.",
)
@click.option(
    "--include-path",
    type=LocalPath(exists=True, file_okay=False),
    help="Directory of custom task files.",
)
@click.option(
    "--limit",
    type=click.IntRange(min=1, max=2**31 - 1),
    metavar="N",
    help="Limit on examples per task.",
)
@batch_size_option
@click.option(
    "--needle",
    callback=token_lengths,
    metavar="LENGTH,…",
    help="Hide a sentence in prompts of so many tokens, and ask for it.",
)
@click.option(
    "--needle-trials",
    type=click.IntRange(min=1, max=10_000),
    default=4,
    show_default=True,
    metavar="N",
    help="Prompts of each length and depth.",
)
@click.option(
    "--needle-picture", type=LocalPath(dir_okay=False), metavar="FILE.png", help="A heat map."
)
@click.option(
    "--teacher",
    type=LocalPath(exists=True, file_okay=False),
    help="The teacher's directory: with --needle, it is asked as well.",
)
@device_option
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def evaluate(
    run: Path,
    caches: tuple[Path | str, ...],
    rows: int | None,
    tasks: str | None,
    out: Path | None,
    is_teacher: bool,
    run_generated_code: bool,
    include_path: Path | None,
    limit: int | None,
    batch_size: int,
    needle: tuple[int, ...] | None,
    needle_trials: int,
    needle_picture: Path | None,
    teacher: Path | None,
    device: str,
    as_json: bool,
) -> None:
    """Compare a student with its teacher, or run tasks on it.

    \b
      pipeline evaluate run --cache cache
      pipeline evaluate run --cache web-cache --cache math-cache
      pipeline evaluate run --tasks hellaswag,arc_easy --limit 100
      pipeline evaluate run --tasks paper-base:understanding --out student-results
      pipeline evaluate run --needle 512,1024,2048 --teacher my-model

    RUN is what train-student wrote with --out, or a model directory. For an unfinished run, the
    newest checkpoint is used; RUN/checkpoints/step-0000500 names one. With --cache: loss,
    perplexity, KL, agreement, accuracy and expected calibration error on the cache's validation
    split, and the teacher's metrics as far as the cache has them; the teacher is not loaded. With
    --tasks: metrics of lm-evaluation-harness, which `pip install 'lm_eval[hf]'` installs; with
    --out they and the items are written in its format, for `pipeline win-and-tie`. With --needle:
    how often the student, and the --teacher, find a number again that a long prompt names once, by
    the prompt's length and by where it names it.
    """
    _refuse_unfit_options(click.get_current_context().params)
    import json

    import cache_format
    from pipeline.students.evaluation import EvalOptions, evaluation_text
    from pipeline.students.joint_evaluation import joint_evaluation, joint_text
    from pipeline.students.lm_eval_harness import (
        HarnessOptions,
        metrics_by_task,
        require_harness,
        tasks_text,
    )
    from pipeline.students.student_files import require_student

    suite = _suite(tasks or "")
    if tasks:
        require_harness()
        if not suite.tasks:
            raise click.UsageError("--tasks names no task")
    options = HarnessOptions(
        include_path=include_path,
        limit=limit,
        batch_size=batch_size,
        device=device,
        max_length=suite.max_length,
        runs_generated_code=run_generated_code,
    )
    if not is_teacher:
        require_student(run)  # or a refusal, before what takes long to import
    opened = [cache_format.open(cache) for cache in caches]
    silence_libraries()
    found: dict[str, Any] = {}
    texts: list[str] = []
    with _model_files(run, caches[0] if caches else None, is_teacher) as model:
        if opened:
            extent = EvalOptions(num_rows=rows, batch_size=batch_size, device=device)
            each = [_evaluate_on_cache(model, cache, extent) for cache in opened]
            found = each[0] if len(each) == 1 else joint_evaluation(each)
            texts += map(evaluation_text, each)
            texts += [] if len(each) == 1 else [joint_text(found)]
        if suite.tasks:
            results = _run_tasks(model.directory, is_teacher, suite, options, out)
            found["tasks"] = metrics_by_task(results)
            texts.append(tasks_text(found["tasks"]))
        if needle is not None:
            from pipeline.students.needles.probe import NeedleOptions
            from pipeline.students.needles.report import needle_text

            asked = NeedleOptions(lengths=needle, num_trials=needle_trials, device=device)
            found["needle"] = _look_for_needles(model.directory, teacher, asked)
            texts.append(needle_text(found["needle"]))
    click.echo(json.dumps(found, indent=1) if as_json else "\n\n".join(texts))
    if needle_picture is not None:  # last: where drawing fails, the figures have been printed
        from pipeline.students.needles.report import draw_needles

        draw_needles(needle_picture, found["needle"])


def _refuse_unfit_options(given: Mapping[str, Any]) -> None:
    """Raise UsageError or BadParameter where options do not go together, or lead nowhere."""
    tasks, needle = given["tasks"], given["needle"]
    if not given["caches"] and not tasks and needle is None:
        raise click.UsageError("give --cache, --tasks, --needle, or several of them")
    if not tasks and (
        given["out"] is not None or given["is_teacher"] or given["run_generated_code"]
    ):
        raise click.UsageError("--out, --is-teacher and --run-generated-code need --tasks")
    if given["is_teacher"] and (given["caches"] or needle is not None):
        raise click.UsageError(
            "--is-teacher goes with --tasks alone: leave out --cache and --needle"
        )
    for option in ("teacher", "needle_picture"):
        if given[option] is not None and needle is None:
            name = option.replace("_", "-")
            raise click.UsageError(f"--{name} goes with --needle, which is missing")
    if given["needle_picture"] is not None:
        require_writable_place(given["needle_picture"], "--needle-picture")


def _say(line: str) -> None:
    from pipeline.reporting.printable import printable

    click.echo(printable(line), err=True)


@contextmanager
def _model_files(run: Path, cache: Path | str | None, is_teacher: bool) -> "Iterator[StudentFiles]":
    """The student of ``run``, or the teacher that it is."""
    from pipeline.students.student_files import StudentFiles, student_files

    if is_teacher:
        yield StudentFiles(directory=run, source=run, step=None)
        return
    with student_files(run, cache, _say) as student:
        yield student


def _suite(tasks: str) -> "Suite":
    """The tasks of a comma-separated list, which may name suites."""
    from pipeline.judgement.suite import Suite, SuiteTask, is_suite, load_suite

    found: list[SuiteTask] = []
    lengths = []
    for name in filter(None, map(str.strip, tasks.split(","))):
        if is_suite(name):
            suite = load_suite(name)
            found += suite.tasks
            lengths += [] if suite.max_length is None else [suite.max_length]
        else:
            found.append(SuiteTask(task=name))
    return Suite(name=tasks, tasks=tuple(found), max_length=max(lengths, default=None))


def _run_tasks(
    directory: Path, is_teacher: bool, suite: "Suite", options: "HarnessOptions", out: Path | None
) -> dict[str, Any]:
    from pipeline.students.evaluated_model import load_evaluated_student, load_evaluated_teacher
    from pipeline.students.task_results import run_tasks

    load = load_evaluated_teacher if is_teacher else load_evaluated_student
    return run_tasks(load(directory), suite.tasks, options, out=out, report=_say)


def _evaluate_on_cache(
    student: "StudentFiles", cache: "Cache", extent: "EvalOptions"
) -> dict[str, Any]:
    from pipeline.reporting.progress_bar import Bar
    from pipeline.students.evaluation import evaluate_student

    with Bar("evaluate", unit=" rows") as bar:
        found = evaluate_student(
            student.directory, cache, extent, lambda done, total: bar.show(done, total, "")
        )
    found |= {"model": str(student.source), "checkpoint_step": student.step}
    if student.step is not None:
        found["notes"].append(f"The student is unfinished: it is from step {student.step}.")
    return found


def _look_for_needles(
    student: Path, teacher: Path | None, asked: "NeedleOptions"
) -> dict[str, Any]:
    from pipeline.reporting.progress_bar import Bar
    from pipeline.students.needles.probe import look_for_needles

    with Bar("needle") as bar:
        return look_for_needles(
            student, teacher, asked, lambda done, total: bar.show(done, total, "")
        )
