"""``pipeline merge-students``: experts of one origin become one student."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pipeline.options.cache_location import CacheLocation, LocalPath
from pipeline.options.evaluation_options import batch_size_option, device_option, rows_option
from pipeline.runtime.silence_libraries import silence_libraries

if TYPE_CHECKING:
    from stages.train_student.merging.parents import Parent
    from stages.train_student.merging.weight_search import Trial, Weights


@click.command("merge-students")
@click.argument("students", nargs=-1, required=True, metavar="STUDENT[=WEIGHT]...")
@click.option(
    "--out",
    type=LocalPath(),
    required=True,
    help="Directory of the merged student, which is made.",
)
@click.option("--normalize", is_flag=True, help="Scale the weights so that they add up to 1.")
@click.option(
    "--search",
    "caches",
    type=CacheLocation(exists=True),
    multiple=True,
    metavar="CACHE",
    help="Search for weights of the lowest validation loss on this cache; repeat it for a mean "
    "over several.",
)
@click.option(
    "--evaluations",
    type=click.IntRange(min=1, max=10**6),
    default=40,
    show_default=True,
    metavar="N",
    help="Merges that the search may try.",
)
@click.option(
    "--any-origin",
    is_flag=True,
    help="Merge also students that began with other weights, such as those of one seed on unlike "
    "machines.",
)
@rows_option("Validation rows of each cache that the search uses")
@batch_size_option
@device_option
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def merge_students(
    students: Sequence[str],
    out: Path,
    normalize: bool,
    caches: Sequence[Path | str],
    evaluations: int,
    any_origin: bool,
    rows: int | None,
    batch_size: int,
    device: str,
    as_json: bool,
) -> None:
    """Merge students of one origin: a weighted sum.

    \b
      pipeline merge-students math=0.4 code=0.6 --out merged
      pipeline merge-students math code --search math-cache --search code-cache --out merged

    Each STUDENT is what train-student wrote with --out, or a model directory. They must have the
    same architecture, teacher and frozen weights, and have begun with the same weights
    (train-student with the same seed, or --init). Weights add up to 1. With --search, those given
    are where it begins, and the trials are printed. The result is a model directory.
    """
    import json

    from pipeline.students.evaluation import EvalOptions
    from pipeline.students.merge_weights import complete_weights, parse_weighted

    weighted = parse_weighted(students)
    weights = complete_weights(weighted, normalize=normalize)
    if not caches and any(student.weight is None for student in weighted):
        raise click.UsageError("give each student a weight (math=0.4), or --search CACHE")
    if out.exists():
        raise click.UsageError(f"--out: {out} is there already. Choose another directory.")
    silence_libraries()
    from pipeline.students.student_files import model_directory
    from stages.train_student.merging.parents import read_parent
    from stages.train_student.merging.publish_merged import publish_merged

    parents = [read_parent(student.name, model_directory(student.place)) for student in weighted]
    _require_one_beginning(parents, any_origin)
    how, trials = "The weights were given.", []
    if caches:
        extent = EvalOptions(num_rows=rows, batch_size=batch_size, device=device)
        trials = _search(parents, caches, weights, evaluations, extent)
        weights, how = _found(trials)
    publish_merged(parents, weights, out, how)
    names = [parent.name for parent in parents]
    if as_json:
        click.echo(json.dumps(_as_json(out, names, weights, trials), indent=1))
    else:
        click.echo(_as_text(out, names, weights, trials))


def _require_one_beginning(parents: "Sequence[Parent]", any_origin: bool) -> None:
    from pipeline.reporting.printable import printable
    from stages.train_student.merging.parents import (
        of_unknown_beginning,
        require_one_beginning,
        require_one_origin,
    )

    require_one_origin(parents)
    if not any_origin:
        require_one_beginning(parents)
    for parent in of_unknown_beginning(parents):
        note = (
            f"{parent.directory}: does not tell what weights it began with (config.json has no "
            "origin_sha256). It is taken to have begun as the others."
        )
        click.echo(printable(note), err=True)


def _search(
    parents: "Sequence[Parent]",
    caches: Sequence[Path | str],
    start: "Weights",
    evaluations: int,
    extent: Any,
) -> "list[Trial]":
    import cache_format
    from pipeline.students.merge_search import search_merge

    def report(trial: "Trial") -> None:
        shares = " ".join(f"{weight:.4f}" for weight in trial.weights)
        click.echo(f"{shares}  loss {trial.score:.4f}", err=True)

    opened = [cache_format.open(cache) for cache in caches]
    return search_merge(parents, opened, start, evaluations, extent, report)


def _found(trials: "list[Trial]") -> "tuple[Weights, str]":
    """The best weights, and the sentence on them in the model card."""
    from stages.train_student.merging.weight_search import best_trial

    best = best_trial(trials)
    how = (
        f"The weights were found by a search over {len(trials)} merges: mean validation loss "
        f"{best.score:.4f} nats per token."
    )
    return best.weights, how


def _as_json(
    out: Path, names: list[str], weights: "Weights", trials: "list[Trial]"
) -> dict[str, Any]:
    return {
        "model": str(out),
        "weights": [list(pair) for pair in zip(names, weights, strict=True)],
        "trials": [
            {
                "weights": list(trial.weights),
                "loss": trial.score if trial.score < float("inf") else None,
            }
            for trial in trials
        ],
    }


def _as_text(out: Path, names: list[str], weights: "Weights", trials: "list[Trial]") -> str:
    from pipeline.reporting.printable import printable
    from stages.train_student.merging.weight_search import best_trial

    rows = []
    if trials:
        best = best_trial(trials)
        rows = [["trial", *names, "loss", ""]]
        for number, trial in enumerate(trials, 1):
            shares = [f"{weight:.4f}" for weight in trial.weights]
            mark = "best" if trial is best else ""
            rows.append([str(number), *shares, f"{trial.score:.4f}", mark])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    table = ["  ".join(map(str.rjust, row, widths)).rstrip() for row in rows]
    sum_of = " + ".join(f"{weight:.4g} {name}" for name, weight in zip(names, weights, strict=True))
    return printable("\n".join([*table, *([""] if table else []), f"{out}: {sum_of}"]))
