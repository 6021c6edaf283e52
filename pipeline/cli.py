"""Every command: read its options, call what does the work, say what came of it.

Nothing heavy is imported before a command runs, and nothing before its recipe has been checked.
Only this module and ``session.py`` print and exit.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import click

from pipeline.commands.cache_commands import export, extend, merge, pack, unpack
from pipeline.commands.student_commands import evaluate, push
from pipeline.commands.teacher_commands import cache_teacher, estimate
from pipeline.commands.train_command import train_student
from pipeline.commands.verify_command import verify
from pipeline.options.cache_location import RUN, CacheLocation, LocalPath
from pipeline.options.finite_range import FiniteRange
from pipeline.runtime.session import PipelineGroup, Session
from pipeline.runtime.silence_libraries import silence_libraries

_DIRECTORY = LocalPath(file_okay=False)
_CACHE = CacheLocation(exists=True)


@click.group(cls=PipelineGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="xlstm-distill", prog_name="pipeline")
@click.option("--debug", is_flag=True, envvar="PIPELINE_DEBUG", help="Show tracebacks of errors.")
def main(debug: bool) -> None:
    """Distill a Transformer into an xLSTM, paying for the teacher once.

    \b
      pipeline cache-teacher --recipe distil-xlstm --out cache
      pipeline train-student --recipe distil-xlstm --cache cache --out run
      pipeline generate run --prompt "The cell"

    The first command runs the teacher over the corpus and writes what a student needs; any number
    of students are then trained without the teacher. `pipeline demo` shows it in minutes.
    """


main.add_command(cache_teacher)
main.add_command(estimate)
main.add_command(train_student)


@main.command()
@click.argument("recipe_name", metavar="[NAME|FILE]", required=False)
def recipes(recipe_name: str | None) -> None:
    """List the shipped recipes, or print one.

    \b
      pipeline recipes
      pipeline recipes distil-xlstm > mine.toml

    The second line makes a copy to edit; pass it as --recipe mine.toml.
    """
    from pipeline.recipes.recipe import listed_recipes, recipe_text

    if recipe_name is not None:
        click.echo(recipe_text(recipe_name), nl=False)
        return
    for name, recipe in listed_recipes().items():
        click.echo(f"{name:14} {recipe.description}")


@main.command()
@click.argument("cache", type=_CACHE)
@click.option("--row", type=click.IntRange(min=0), metavar="N", help="Decode row N instead.")
@click.option(
    "--split",
    type=click.Choice(["train", "validation"]),
    default="train",
    show_default=True,
    help="The split that --row counts in.",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def inspect(
    cache: Path | str, row: int | None, split: Literal["train", "validation"], as_json: bool
) -> None:
    """Summarize a cache, or decode one of its rows.

    \b
      pipeline inspect cache
      pipeline inspect cache --row 0 --split validation

    Read-only; works on a cache that is still being written, too.
    """
    import json

    import pipeline.reports.inspection as view

    if row is None:
        summary = view.summarise(cache)
        click.echo(json.dumps(summary, indent=1) if as_json else view.summary_text(summary))
    else:
        decoded = view.decode_row(cache, split, row)
        click.echo(json.dumps(decoded, indent=1) if as_json else view.row_text(decoded))


@main.command()
@click.argument("run", type=RUN)
@click.option("--prompt", required=True, help="The text to continue.")
@click.option(
    "--max-new-tokens", type=click.IntRange(min=1), default=128, show_default=True, metavar="N"
)
@click.option(
    "--temperature",
    type=FiniteRange(min=0.0),
    default=0.8,
    show_default=True,
    help="Sampling temperature; 0 is greedy decoding.",
)
@click.option("--top-k", type=click.IntRange(min=1), default=50, show_default=True, metavar="K")
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True)
@click.option(
    "--cache",
    type=_CACHE,
    help="The cache of an unfinished run, if it has been moved.",
)
def generate(
    run: Path,
    prompt: str,
    max_new_tokens: int,
    temperature: float,
    top_k: int,
    seed: int,
    cache: Path | str | None,
) -> None:
    """Generate text with a trained student.

    \b
      pipeline generate run --prompt "The cell" --max-new-tokens 64

    RUN is what train-student wrote with --out, or a model directory. For an unfinished run, the
    newest checkpoint is used; RUN/checkpoints/step-0000500 names one. Embedding, head and tokenizer
    then come from the run's cache. Text is printed as it is generated.
    """
    from pipeline.students.student_files import require_student

    require_student(run)  # or a refusal, before what takes long to import
    silence_libraries()
    from pipeline.reporting.printable import printable
    from pipeline.students.generation import Sampling, require_text, stream_text
    from pipeline.students.student_files import student_files

    sampling = Sampling(
        max_new_tokens=max_new_tokens, temperature=temperature, top_k=top_k, seed=seed
    )
    require_text(prompt)
    with student_files(run, cache, lambda line: click.echo(printable(line), err=True)) as student:
        stream_text(
            student.directory,
            prompt,
            sampling,
            lambda text: click.echo(printable(text), nl=False),
        )


for command in (evaluate, push, verify, pack, unpack, merge, extend, export):
    main.add_command(command)


@main.command()
@click.option(
    "--out",
    type=_DIRECTORY,
    default=Path("demo-out"),
    show_default=True,
    help="Directory of everything the demo writes.",
)
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True)
@click.pass_obj
def demo(session: Session, out: Path, seed: int) -> None:
    """Cache a small teacher, train two students, compare.

    \b
      pipeline demo --out demo-out

    Needs no network and no GPU; takes minutes. Writes corpus, cache, runs, a table and a plot
    under --out. Run it again to resume, or to see the results again.
    """
    from pipeline.demo.run import run_demo

    def command(arguments: Sequence[str]) -> None:
        with main.make_context("pipeline", list(arguments), obj=session) as context:
            main.invoke(context)

    run_demo(out, command, seed=seed)
