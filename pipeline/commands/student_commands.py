"""The commands that judge and share a trained student; ``cli.py`` adds them to the others.

As there: read the options, call what does the work, say what came of it. Nothing heavy is imported
before a command runs.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pipeline.options.cache_location import RUN, CacheLocation, LocalPath
from pipeline.runtime.silence_libraries import silence_libraries

if TYPE_CHECKING:
    from cache_format.reader import Cache


@click.command()
@click.argument("run", type=RUN)
@click.option(
    "--cache", type=CacheLocation(exists=True), help="A cache of its teacher, or its URL."
)
@click.option(
    "--rows",
    type=click.IntRange(min=1),
    metavar="N",
    help="Rows of the cache's validation split, spread evenly over it; by default all.",
)
@click.option(
    "--tasks", metavar="NAME,…", help="Tasks of lm-evaluation-harness, separated by commas."
)
@click.option(
    "--include-path", type=LocalPath(exists=True, file_okay=False), help="Your own task files."
)
@click.option("--limit", type=click.IntRange(min=1), metavar="N", help="Examples of each task.")
@click.option("--batch-size", type=click.IntRange(min=1), default=8, show_default=True, metavar="N")
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda or cuda:N.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def evaluate(
    run: Path,
    cache: Path | str | None,
    rows: int | None,
    tasks: str | None,
    include_path: Path | None,
    limit: int | None,
    batch_size: int,
    device: str,
    as_json: bool,
) -> None:
    """Compare a student with its teacher, and try it on tasks.

    \b
      pipeline evaluate run --cache cache
      pipeline evaluate run --tasks hellaswag,arc_easy --limit 100

    RUN is what train-student wrote with --out, or a model directory. For an unfinished run, the
    newest checkpoint is used; RUN/checkpoints/step-0000500 names one. With --cache: loss,
    perplexity, KL, agreement, accuracy and expected calibration error on the cache's validation
    split, and what the cache tells of the teacher; the teacher is not loaded. With --tasks: metrics
    of lm-evaluation-harness, which is installed by `pip install 'lm_eval[hf]'`.
    """
    if cache is None and not tasks:
        raise click.UsageError("give --cache, --tasks, or both")
    import json

    import cache_format
    from pipeline.students.student_files import require_student

    found: dict[str, Any] = {}
    lines = []
    if tasks:
        from pipeline.students.lm_eval_harness import require_harness

        require_harness()
    require_student(run)  # or a refusal, before what takes long to import
    opened = None if cache is None else cache_format.open(cache)
    silence_libraries()
    from pipeline.students.student_files import student_files

    with student_files(run, cache, lambda line: click.echo(line, err=True)) as student:
        if opened is not None:
            from pipeline.students.evaluation import EvalOptions, evaluate_student, evaluation_text

            extent = EvalOptions(num_rows=rows, batch_size=batch_size, device=device)
            found = _with_bar(student.directory, opened, extent, evaluate_student)
            found |= {"model": str(student.source), "checkpoint_step": student.step}
            if student.step is not None:
                found["notes"].append(f"The student is that of step {student.step}, unfinished.")
            lines.append(evaluation_text(found))
        if tasks:
            from pipeline.students.lm_eval_harness import HarnessOptions, run_tasks, tasks_text

            options = HarnessOptions(
                include_path=include_path, limit=limit, batch_size=batch_size, device=device
            )
            names = [name.strip() for name in tasks.split(",") if name.strip()]
            found["tasks"] = run_tasks(student.directory, names, options)
            lines.append(tasks_text(found["tasks"]))
    click.echo(json.dumps(found, indent=1) if as_json else "\n\n".join(lines))


def _with_bar(run: Path, cache: "Cache", extent: Any, evaluate_student: Any) -> dict[str, Any]:
    from pipeline.reporting.progress_bar import Bar

    with Bar("evaluate", unit=" rows") as bar:
        found: dict[str, Any] = evaluate_student(
            run,
            cache,
            extent,
            lambda done, total: bar.show(done, total, ""),
        )
    return found


@click.command()
@click.argument("run", type=RUN)
@click.argument("repo_id")
@click.option("--private", is_flag=True, help="Make a private repository, if there is none yet.")
@click.option("--revision", metavar="BRANCH", help="Upload to this branch; made if there is none.")
def push(run: Path, repo_id: str, private: bool, revision: str | None) -> None:
    """Upload a student to the Hugging Face Hub.

    \b
      pipeline push run me/my-student --private

    RUN is what train-student wrote with --out, or a model directory. Weights, tokenizer, model card
    and the model's code, for `trust_remote_code=True`, are uploaded, no cache and no checkpoint.
    The same command again uploads what has changed.
    """
    from pipeline.students.student_files import model_directory

    model_directory(run)  # or a refusal, before what takes long to import
    silence_libraries()
    from pipeline.students.hub_upload import push_model

    url = push_model(run, repo_id, is_private=private, revision=revision)
    at_revision = "" if revision is None else f", revision={revision!r}"
    click.echo(
        f"{url}\nWhere torch, transformers and xlstm are installed, it is loaded by\n"
        f"  AutoModelForCausalLM.from_pretrained({repo_id!r}{at_revision}, trust_remote_code=True)"
    )
