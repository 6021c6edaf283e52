"""Every command: read its options, call what does the work, say what came of it.

Nothing heavy is imported before a command runs, and nothing before its recipe has been checked.
Only this module and ``session.py`` print and exit.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import click

from pipeline.quiet import quieten
from pipeline.session import PipelineGroup, Session

if TYPE_CHECKING:
    from pipeline.recipe import Recipe

_Command = TypeVar("_Command", bound=Callable[..., Any])

_DIRECTORY = click.Path(file_okay=False, path_type=Path)
_CACHE = click.Path(exists=True, file_okay=False, path_type=Path)


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
@click.option("--out", type=_DIRECTORY, required=True, help="Directory of the cache.")
@click.option("--tokens", metavar="N", help="Budget, such as 512M; sets cache_teacher.num_tokens.")
@click.pass_obj
def cache_teacher(
    session: Session, recipe_name: str, settings: Sequence[str], out: Path, tokens: str | None
) -> None:
    """Run the teacher over the corpus once; cache its targets.

    \b
      pipeline cache-teacher --recipe distil-xlstm --out cache --tokens 512M

    Writes cache/manifest.json (what is in it), cache/shards (the targets), cache/receipts (what is
    finished) and cache/teacher (the teacher's embedding, head and tokenizer).

    To resume after an interruption, type the same command again: finished shards are kept. With
    more --tokens, it extends the cache.
    """
    recipe = _load(session, recipe_name, settings, tokens=tokens, ignored="train_student")
    quieten()
    from pipeline.progress import Bar, CacheReport, short
    from stages.cache_teacher.run import cache_teacher as run

    with Bar("cache") as bar:
        manifest = run(
            recipe.cache_teacher, out, recipe_toml=recipe.to_toml(), report=CacheReport(bar)
        )
    num_tokens = sum(shard.num_tokens for shard in manifest.shards)
    held = f"{out} holds {short(num_tokens)} tokens in {len(manifest.shards)} shards."
    if all(shard.split == "validation" for shard in manifest.shards):
        click.echo(
            f"{held} All of them are validation: for something to train on, cache more --tokens, "
            "or fewer cache_teacher.documents_per_unit in another --out."
        )
        return
    click.echo(
        f"{held} Next:\n"
        f"  pipeline train-student --recipe {recipe_name} --cache {quote(str(out))} --out RUN"
    )


@main.command("train-student")
@_recipe_options
@click.option("--cache", type=_CACHE, required=True, help="The cache to learn from.")
@click.option("--out", type=_DIRECTORY, required=True, help="Directory of the run.")
@click.option("--resume", is_flag=True, help="Go on from the newest checkpoint in --out.")
@click.pass_obj
def train_student(
    session: Session,
    recipe_name: str,
    settings: Sequence[str],
    cache: Path,
    out: Path,
    resume: bool,
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
    from pipeline.progress import Bar, TrainReport, validation_figures
    from stages.train_student.run import train_student as run

    with Bar("train") as bar:
        metrics = run(
            recipe.train_student,
            cache,
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
    cache: Path, row: int | None, split: Literal["train", "validation"], as_json: bool
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


@main.command()
@click.argument("cache", type=_CACHE)
def verify(cache: Path) -> None:
    """Check every byte of a cache; name each bad file.

    \b
      pipeline verify cache

    Exit code 0: every byte is as it was written. 1: something is not. Changes nothing.
    """
    import cache_format
    from pipeline.progress import Bar, size

    opened = cache_format.open(cache, allow_incomplete=True)
    with Bar("verify", unit="B") as bar:
        problems = opened.verify(lambda done, total: bar.show(done, total, ""))
    for problem in problems:
        click.echo(problem.message)
    if problems:
        click.echo(f"{cache}: {len(problems)} bad. Do as it says above, then verify again.")
        raise click.exceptions.Exit(1)
    num_bytes = size(sum(shard.num_bytes for shard in opened.manifest.shards))
    click.echo(
        f"{cache}: every byte is as it was written "
        f"({len(opened.manifest.shards)} shards, {num_bytes})."
    )
    if not opened.manifest.complete:
        click.echo("It is not complete: its `pipeline cache-teacher` has not finished.")


@main.command()
@click.argument("run", type=_CACHE)
@click.option("--prompt", required=True, help="The text to go on from.")
@click.option(
    "--max-new-tokens", type=click.IntRange(min=1), default=128, show_default=True, metavar="N"
)
@click.option(
    "--temperature",
    type=click.FloatRange(min=0.0),
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
