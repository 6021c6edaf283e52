"""``pipeline cache-teacher``: read its options, run stage one, report the result."""

from collections.abc import Sequence
from pathlib import Path
from shlex import quote
from typing import Any

import click

from pipeline.options.cache_location import CacheLocation, LocalPath
from pipeline.options.ray_options import ray_options
from pipeline.options.recipe_options import load_session_recipe, recipe_options, tokens_option
from pipeline.options.reporting_options import (
    open_reporter,
    reporting_options,
    require_place,
    send_start,
)
from pipeline.runtime.session import Session


@click.command("cache-teacher")
@recipe_options
@click.option(
    "--out",
    type=CacheLocation(exists=False),
    required=True,
    help="Directory of the cache, or a URL such as s3://bucket/cache.",
)
@tokens_option
@click.option(
    "--units",
    metavar="FIRST:END",
    help="Cache only these units, END excluded, as one part to be merged.",
)
@click.option(
    "--worker",
    metavar="r/R",
    help="Cache every R-th unit, starting at r; R such commands share one --out. auto: read r and "
    "R from the environment of torchrun, srun or a Slurm array.",
)
@ray_options(
    engine_help="Where the teacher runs: in this process, or on a Ray cluster.",
    workers_help="Number of teachers in the cluster; by default one per GPU, or one without GPUs.",
)
@click.option(
    "--summary",
    type=LocalPath(dir_okay=False),
    metavar="FILE",
    help="Write a summary of the run to FILE, as JSON.",
)
@click.option(
    "--dry-run",
    is_flag=True,
    help="Resolve and check everything, and print what would be cached. Loads no weights and "
    "writes nothing; files from the Hub are downloaded as usual.",
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
    """Run the teacher over a corpus once and cache its targets.

    \b
      pipeline cache-teacher --recipe distil-xlstm --out cache --tokens 512M

    Writes cache/manifest.json (the contents), cache/shards (the targets), cache/receipts (which
    units are finished) and cache/teacher (the teacher's embedding, head and tokenizer).

    To resume after an interruption, run the same command again: finished shards are kept. A larger
    --tokens extends the cache.

    Several machines can share the work; the cache is the same as with one. If they can share --out,
    run the command with --worker 0/8, --worker 1/8 and so on (again, if interrupted), or with
    --engine ray. Otherwise use --units 0:100, --units 100:200 and so on, the last one without END,
    then `pipeline merge` the parts into one cache.
    """
    from pipeline.commands.run_stage_one import run_stage_one, send_outcome, send_plan
    from pipeline.options.engine_options import EngineOptions

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
