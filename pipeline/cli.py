"""Every command: read its options, call what does the work, say what came of it.

Nothing heavy is imported before a command runs, and nothing before its recipe has been checked.
Only this module and ``session.py`` print and exit.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import click

from pipeline.cache_commands import export, extend, merge, pack, unpack
from pipeline.cache_location import CacheLocation, LocalPath
from pipeline.finite_range import FiniteRange
from pipeline.quiet import quieten
from pipeline.session import PipelineGroup, Session
from pipeline.verify_command import verify

if TYPE_CHECKING:
    from pipeline.recipe import Recipe

_Command = TypeVar("_Command", bound=Callable[..., Any])

_DIRECTORY = LocalPath(file_okay=False)
_CACHE = CacheLocation(exists=True)


@click.group(cls=PipelineGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="xlstm-distill", prog_name="pipeline")
@click.option("--debug", is_flag=True, envvar="PIPELINE_DEBUG", help="Show a failure's traceback.")
def main(debug: bool) -> None:
    """Distil a Transformer into an xLSTM, paying for the teacher once.

    \b
      pipeline cache-teacher --recipe distil-xlstm --out cache
      pipeline train-student --recipe distil-xlstm --cache cache --out run
      pipeline generate run --prompt "The cell"

    The first command runs the teacher over the corpus and writes what a student needs; any number
    of students are then trained without the teacher. `pipeline demo` shows it in minutes.
    """


def _recipe_options(command: _Command) -> _Command:
    """``--recipe`` and ``--set``."""
    settings = click.option(
        "--set",
        "settings",
        multiple=True,
        metavar="TABLE.KEY=VALUE",
        help="Override one value of the recipe; may be repeated.",
    )
    recipe = click.option(
        "--recipe",
        "recipe_name",
        required=True,
        metavar="NAME|FILE",
        help="A shipped recipe (`pipeline recipes` lists them) or a TOML file.",
    )
    return recipe(settings(command))


@main.command("cache-teacher")
@_recipe_options
@click.option(
    "--out",
    type=CacheLocation(exists=False),
    required=True,
    help="Directory of the cache, or a URL such as s3://bucket/cache.",
)
@click.option("--tokens", metavar="N", help="Budget, such as 512M; sets cache_teacher.num_tokens.")
@click.option(
    "--units",
    metavar="FIRST:END",
    help="Make these units only, END excluded: one machine's part, to be merged.",
)
@click.option(
    "--worker",
    metavar="r/R",
    help="Make every R-th unit, from r on; R such commands share one --out. auto: as torchrun, "
    "srun or a Slurm array says.",
)
@click.option(
    "--engine",
    type=click.Choice(["local", "ray"]),
    default="local",
    show_default=True,
    help="Who makes the units: this process, or a Ray cluster.",
)
@click.option(
    "--ray-workers",
    type=click.IntRange(min=1),
    metavar="N",
    help="Teachers in the cluster; by default one for each GPU, or one.",
)
@click.option(
    "--ray-address", help="The cluster; by default $RAY_ADDRESS, or one started for this command."
)
@click.option("--summary", type=LocalPath(dir_okay=False), help="Write the run's figures there.")
@click.option("--json", "as_json", is_flag=True, help="Print the run's figures as JSON.")
@click.pass_obj
def cache_teacher(
    session: Session,
    /,
    recipe_name: str,
    settings: Sequence[str],
    out: Path | str,
    tokens: str | None,
    summary: Path | None,
    as_json: bool,
    **who: Any,
) -> None:
    """Run the teacher over the corpus once; cache its targets.

    \b
      pipeline cache-teacher --recipe distil-xlstm --out cache --tokens 512M

    Writes cache/manifest.json (what is in it), cache/shards (the targets), cache/receipts (what is
    finished) and cache/teacher (the teacher's embedding, head and tokenizer).

    To resume after an interruption, type the same command again: finished shards are kept. With
    more --tokens, it extends the cache.

    Several machines share the work in one of three ways, to the same cache. With a common --out,
    the same command with --worker 0/8, --worker 1/8 and so on, each as often as it is interrupted;
    or --engine ray. Without, --units 0:100, --units 100:200 and so on, the last one without END;
    `pipeline merge` makes one cache of their parts.
    """
    from cache_format.atomic import publish_bytes
    from pipeline.stage_one import (
        EngineOptions,
        cached_text,
        require_place,
        run_stage_one,
        summary_json,
    )

    engine = EngineOptions(**who).checked()
    if summary is not None:
        require_place(summary, out)
    recipe = _load(session, recipe_name, settings, tokens=tokens, ignored="train_student")
    outcome = run_stage_one(recipe, out, engine)
    figures = summary_json(outcome)
    if summary is not None:
        publish_bytes(summary, figures.encode())
    click.echo(
        figures if as_json else cached_text(outcome, out, quote(recipe_name)), nl=not as_json
    )


@main.command()
@_recipe_options
@click.option("--tokens", metavar="N", help="Budget, such as 512M; sets cache_teacher.num_tokens.")
@click.option(
    "--seconds",
    type=FiniteRange(min=0.0, max=3600.0),
    default=60.0,
    show_default=True,
    help="How long to measure, once the teacher is loaded.",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.pass_obj
def estimate(
    session: Session,
    recipe_name: str,
    settings: Sequence[str],
    tokens: str | None,
    seconds: float,
    as_json: bool,
) -> None:
    """Say what a cache will take, in hours and bytes.

    \b
      pipeline estimate --recipe distil-xlstm --tokens 512M

    Loads the teacher, caches for a minute into a temporary directory with the recipe's settings,
    and scales up what came of it. Hours are those of this device; N of them take an N-th.
    """
    recipe = _load(session, recipe_name, settings, tokens=tokens, ignored="train_student")
    quieten()
    from pipeline.estimate import estimate_json, estimate_text
    from pipeline.progress import Bar, CacheReport
    from stages.cache_teacher.estimate import estimate as measure

    with Bar("estimate") as bar:
        found = measure(recipe.cache_teacher, seconds, CacheReport(bar))
    click.echo(estimate_json(found) if as_json else estimate_text(found))


@main.command("train-student")
@_recipe_options
@click.option("--cache", type=_CACHE, required=True, help="The cache to learn from, or its URL.")
@click.option("--out", type=_DIRECTORY, required=True, help="Directory of the run.")
@click.option("--resume", is_flag=True, help="Go on from the newest checkpoint in --out.")
@click.option(
    "--local-directory",
    type=_DIRECTORY,
    help="Where shards of a cache at a URL are copied to; by default in your cache directory. Not "
    "in the recipe: it is this machine's affair, and no result depends on it.",
)
@click.option(
    "--local-gib",
    type=FiniteRange(min=0.0, min_open=True, max=1_000_000.0),
    default=20.0,
    show_default=True,
    metavar="GIB",
    help="The most that these copies take.",
)
@click.pass_obj
def train_student(
    session: Session,
    recipe_name: str,
    settings: Sequence[str],
    cache: Path | str,
    out: Path,
    resume: bool,
    local_directory: Path | None,
    local_gib: float,
) -> None:
    """Train a student from a cache. The teacher is not needed, nor loaded.

    \b
      pipeline train-student --recipe distil-xlstm --cache cache --out run

    Writes run/recipe.toml, run/metrics.jsonl, run/tensorboard, run/checkpoints and, at the end,
    run/model: a Hugging Face model directory.

    To resume after an interruption, type the same command with --resume.
    """
    recipe = _load(session, recipe_name, settings, ignored="cache_teacher")
    quieten()
    import cache_format
    from pipeline.progress import Bar, TrainReport, validation_figures
    from stages.train_student.run import train_student as run

    opened = cache_format.open(
        cache, local_directory=local_directory, local_bytes=max(1, int(local_gib * 2**30))
    )
    with Bar("train") as bar:
        metrics = run(
            recipe.train_student,
            opened,
            out,
            resume=resume,
            recipe_toml=recipe.to_toml(),
            report=TrainReport(bar),
        )
    click.echo(
        f"{validation_figures(metrics)}\n{out / 'model'} holds the student. Next:\n"
        f'  pipeline generate {quote(str(out))} --prompt "Once upon a time"'
    )


@main.command()
@click.argument("recipe_name", metavar="[NAME|FILE]", required=False)
def recipes(recipe_name: str | None) -> None:
    """List the shipped recipes, or print one.

    \b
      pipeline recipes
      pipeline recipes distil-xlstm > mine.toml

    The second line makes a copy to edit; pass it as --recipe mine.toml.
    """
    from pipeline.recipe import load_recipe, recipe_names, recipe_text

    if recipe_name is not None:
        click.echo(recipe_text(recipe_name), nl=False)
        return
    for name in recipe_names():
        click.echo(f"{name:14} {load_recipe(name).description}")


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
    """Say what a cache holds, or decode one of its rows.

    \b
      pipeline inspect cache
      pipeline inspect cache --row 0 --split validation

    Reads the cache, also while it is being written, and changes nothing.
    """
    import json

    import pipeline.inspect as view

    if row is None:
        summary = view.summarise(cache)
        click.echo(json.dumps(summary, indent=1) if as_json else view.summary_text(summary))
    else:
        decoded = view.decode_row(cache, split, row)
        click.echo(json.dumps(decoded, indent=1) if as_json else view.row_text(decoded))


for command in (verify, pack, unpack, merge, extend, export):
    main.add_command(command)


@main.command()
@click.argument("run", type=LocalPath(exists=True, file_okay=False))
@click.option("--prompt", required=True, help="The text to go on from.")
@click.option(
    "--max-new-tokens", type=click.IntRange(min=1), default=128, show_default=True, metavar="N"
)
@click.option(
    "--temperature",
    type=FiniteRange(min=0.0),
    default=0.8,
    show_default=True,
    help="0 takes the likeliest token each time.",
)
@click.option("--top-k", type=click.IntRange(min=1), default=50, show_default=True, metavar="K")
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True)
def generate(
    run: Path, prompt: str, max_new_tokens: int, temperature: float, top_k: int, seed: int
) -> None:
    """Let a trained student go on from a prompt.

    \b
      pipeline generate run --prompt "The cell" --max-new-tokens 64

    RUN is what train-student wrote with --out, or a model directory. Text appears as it is made.
    """
    quieten()
    from pipeline.generate import Sampling, stream_text

    sampling = Sampling(
        max_new_tokens=max_new_tokens, temperature=temperature, top_k=top_k, seed=seed
    )
    stream_text(run, prompt, sampling, lambda text: click.echo(text, nl=False))


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
    under --out. Type it again to resume, or to see the results again.
    """
    from pipeline.demo.run import run_demo

    def command(arguments: Sequence[str]) -> None:
        with main.make_context("pipeline", list(arguments), obj=session) as context:
            main.invoke(context)

    run_demo(out, command, seed=seed)


def _load(
    session: Session,
    name: str,
    settings: Sequence[str],
    *,
    ignored: str,
    tokens: str | None = None,
) -> "Recipe":
    """The recipe, kept in ``session`` for a failure's message; nothing is set in vain."""
    from pipeline.recipe import RecipeError, load_recipe, parse_override, token_budget

    overrides = [parse_override(setting) for setting in settings]
    for override in overrides:
        if override.table == ignored:
            raise RecipeError(f"{override.option}: this command does not read [{ignored}]")
    if tokens is not None:
        overrides.append(token_budget(tokens))
    session.recipe = load_recipe(name, overrides)
    return session.recipe
