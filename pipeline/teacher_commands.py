"""The commands that load a teacher: ``cache-teacher`` and ``estimate``; ``cli.py`` adds them.

Nothing heavy is imported before they run, and nothing before the recipe has been checked.
"""

from collections.abc import Sequence
from pathlib import Path
from shlex import quote
from typing import Any

import click

from pipeline.cache_location import CacheLocation, LocalPath
from pipeline.finite_range import FiniteRange
from pipeline.quiet import quieten
from pipeline.recipe_options import load_session_recipe, recipe_options
from pipeline.session import Session

_tokens_option = click.option(
    "--tokens", metavar="N", help="Budget, such as 512M; sets cache_teacher.num_tokens."
)


@click.command("cache-teacher")
@recipe_options
@click.option(
    "--out",
    type=CacheLocation(exists=False),
    required=True,
    help="Directory of the cache, or a URL such as s3://bucket/cache.",
)
@_tokens_option
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
    recipe = load_session_recipe(
        session, recipe_name, settings, tokens=tokens, ignored="train_student"
    )
    outcome = run_stage_one(recipe, out, engine)
    figures = summary_json(outcome)
    if summary is not None:
        publish_bytes(summary, figures.encode())
    click.echo(
        figures if as_json else cached_text(outcome, out, quote(recipe_name)), nl=not as_json
    )


@click.command()
@recipe_options
@_tokens_option
@click.option(
    "--seconds",
    type=FiniteRange(min=0.0, max=3600.0),
    default=60.0,
    show_default=True,
    help="How long to measure, once the teacher is loaded; longer only if its first forward pass "
    "takes longer.",
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

    Ctrl-C ends it without an answer; fewer --seconds give a rougher one sooner.
    """
    recipe = load_session_recipe(
        session, recipe_name, settings, tokens=tokens, ignored="train_student"
    )
    quieten()
    from pipeline.estimate import EstimateReport, estimate_json, estimate_text
    from pipeline.progress import Bar
    from stages.cache_teacher.estimate import estimate as measure

    with Bar("estimate", unit=" s", has_rate=False) as bar:
        found = measure(recipe.cache_teacher, seconds, EstimateReport(bar, seconds))
    click.echo(estimate_json(found) if as_json else estimate_text(found))
