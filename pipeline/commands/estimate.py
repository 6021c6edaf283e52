"""``pipeline estimate``: the time and disk space of a cache, measured for a minute."""

from collections.abc import Sequence

import click

from pipeline.options.finite_range import FiniteRange
from pipeline.options.recipe_options import load_session_recipe, recipe_options, tokens_option
from pipeline.runtime.session import Session
from pipeline.runtime.silence_libraries import silence_libraries


@click.command()
@recipe_options
@tokens_option
@click.option(
    "--seconds",
    type=FiniteRange(min=0.0, max=3600.0),
    default=60.0,
    show_default=True,
    help="How long to measure, once the teacher is loaded; at least until the first forward pass "
    "is finished.",
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
    and extrapolates. Times are for one device like this one; divide by the number of devices.

    Fewer --seconds give a less precise estimate. Ctrl-C stops without a result.
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
