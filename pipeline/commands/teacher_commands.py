"""The commands that load a teacher: ``cache-teacher`` and ``estimate``; ``cli.py`` adds them.

Nothing heavy is imported before they run, and nothing before the recipe has been checked.
"""

from collections.abc import Sequence
from pathlib import Path
from shlex import quote
from typing import Any

import click

from pipeline.options.cache_location import CacheLocation, LocalPath
from pipeline.options.finite_range import FiniteRange
from pipeline.options.recipe_options import load_session_recipe, recipe_options
from pipeline.options.reporting_options import (
    open_reporter,
    reporting_options,
    require_place,
    send_start,
)
from pipeline.runtime.session import Session
from pipeline.runtime.silence_libraries import silence_libraries

_tokens_option = click.option(
    "--tokens",
    metavar="N",
    help="Budget, such as 512M, rounded up to whole units; sets cache_teacher.num_tokens.",
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
    help="Cache only these units, END excluded: one machine's part, to be merged.",
)
@click.option(
    "--worker",
    metavar="r/R",
    help="Cache every R-th unit, starting at r; R such commands share one --out. auto: taken from "
    "torchrun, srun or a Slurm array.",
)
@click.option(
    "--engine",
    type=click.Choice(["local", "ray"]),
    default="local",
    show_default=True,
    help="Where the teacher runs: in this process, or on a Ray cluster.",
)
@click.option(
    "--ray-workers",
    type=click.IntRange(min=1),
    metavar="N",
    help="Teachers in the cluster; by default one per GPU, or one.",
)
@click.option(
    "--ray-address", help="The cluster; by default $RAY_ADDRESS, or one started for this command."
)
@click.option(
    "--summary",
    type=LocalPath(dir_okay=False),
    metavar="FILE",
    help="Write the run's figures to FILE, as JSON.",
)
@click.option(
    "--dry-run",
    is_flag=True,
    help="Resolve and check everything, and say what would be cached. Loads no weights and writes "
    "nothing; files from the Hub are downloaded as usual.",
)
@reporting_options
@click.pass_obj
def cache_teacher(
    session: Session,
    /,
    recipe_name: str,
    settings: Sequence[str],
    out: Path | str,
    tokens: str | None,
    summary: Path | None,
    dry_run: bool,
    **options: Any,
) -> None:
    """Run the teacher over the corpus once; cache its targets.

    \b
      pipeline cache-teacher --recipe distil-xlstm --out cache --tokens 512M

    Writes cache/manifest.json (what is in it), cache/shards (the targets), cache/receipts (what is
    finished) and cache/teacher (the teacher's embedding, head and tokenizer).

    To resume after an interruption, run the same command again: finished shards are kept. With
    more --tokens, it extends the cache.

    Several machines can share the work, and the cache is the same. With a shared --out: run the
    command with --worker 0/8, --worker 1/8 and so on (again, if interrupted), or with --engine
    ray. Without a shared --out: --units 0:100, --units 100:200 and so on, the last one without
    END; then `pipeline merge` the parts into one cache.
    """
    from pipeline.commands.run_stage_one import (
        EngineOptions,
        run_stage_one,
        send_outcome,
        send_plan,
    )

    reporting = {name: options.pop(name) for name in ("quiet", "log_file", "as_json")}
    reporter = open_reporter(session, "cache", out, **reporting)
    engine = EngineOptions(**options).checked()
    if summary is not None:
        require_place(summary, out, "--summary")
    recipe = load_session_recipe(
        session, recipe_name, settings, tokens=tokens, ignored="train_student"
    )
    send_start(reporter, "cache-teacher", recipe=recipe_name, out=str(out))
    if dry_run:
        send_plan(recipe, out, reporter)
        return
    outcome = run_stage_one(recipe, out, engine, reporter)
    figures = send_outcome(outcome, out, quote(recipe_name), reporter)
    if summary is not None:
        import json

        from cache_format.storage.atomic import publish_bytes

        publish_bytes(summary, (json.dumps(figures, indent=1) + "\n").encode())


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
    """Estimate the time and disk space of a cache.

    \b
      pipeline estimate --recipe distil-xlstm --tokens 512M

    Loads the teacher, caches for a minute into a temporary directory with the recipe's settings,
    and scales up what came of it. Hours are those of this device; N of them take an N-th.

    Ctrl-C ends it without an answer; fewer --seconds give a rougher one sooner.
    """
    recipe = load_session_recipe(
        session, recipe_name, settings, tokens=tokens, ignored="train_student"
    )
    from stages.cache_teacher.preflight import check_early

    check_early(recipe.cache_teacher)
    silence_libraries()
    from pipeline.reporting.progress_bar import Bar
    from pipeline.reports.estimate_report import EstimateReport, estimate_json, estimate_text
    from stages.cache_teacher.estimate import estimate as measure

    with Bar("estimate", unit=" s", has_rate=False) as bar:
        found = measure(recipe.cache_teacher, seconds, EstimateReport(bar, seconds))
    click.echo(estimate_json(found) if as_json else estimate_text(found))
