"""``pipeline estimate``: the time and disk space of a cache, measured for a minute."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import click
from click.core import ParameterSource

from pipeline.options.finite_range import FiniteRange
from pipeline.options.recipe_options import load_session_recipe, recipe_options, tokens_option
from pipeline.runtime.session import Session
from pipeline.runtime.silence_libraries import silence_libraries

if TYPE_CHECKING:
    from stages.cache_teacher.config import CacheTeacherConfig


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
@click.option(
    "--compare-targets",
    is_flag=True,
    help="Compare the kinds of cache_teacher.targets instead: size, and what is lost of the "
    "teacher. Not with --seconds.",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.pass_context
def estimate(
    context: click.Context,
    recipe_name: str,
    settings: Sequence[str],
    tokens: str | None,
    seconds: float,
    compare_targets: bool,
    as_json: bool,
) -> None:
    """Estimate the time and disk space of a cache.

    \b
      pipeline estimate --recipe distil-xlstm --tokens 512M
      pipeline estimate --recipe distil-xlstm --compare-targets

    Loads the teacher, caches for a minute into a temporary directory with the recipe's settings,
    and extrapolates. Times are for one device like this one; divide by the number of devices.

    With --compare-targets, shows a few thousand tokens to the teacher and prints for each kind of
    targets and some settings, the recipe's among them, what a token takes on disk, how far the
    cache's distribution is from the teacher's, and the bias and noise of a student's gradient.

    Fewer --seconds give a less precise estimate. Ctrl-C stops without a result.
    """
    is_default = context.get_parameter_source("seconds") is ParameterSource.DEFAULT
    if compare_targets and not is_default:
        raise click.UsageError("--seconds: not with --compare-targets, which is bounded in tokens")
    session: Session = context.obj
    recipe = load_session_recipe(
        session, recipe_name, settings, tokens=tokens, ignored="train_student"
    )
    from stages.cache_teacher.preflight import check_early

    check_early(recipe.cache_teacher)
    silence_libraries()
    if compare_targets:
        click.echo(_compared(recipe.cache_teacher, as_json))
    else:
        click.echo(_estimated(recipe.cache_teacher, seconds, as_json))


def _estimated(config: "CacheTeacherConfig", seconds: float, as_json: bool) -> str:
    from pipeline.reporting.progress_bar import Bar
    from pipeline.reports.estimate_report import EstimateReport, estimate_json, estimate_text
    from stages.cache_teacher.estimate import estimate as measure

    with Bar("estimate", unit=" s", has_rate=False) as bar:
        found = measure(config, seconds, EstimateReport(bar, seconds))
    return estimate_json(found) if as_json else estimate_text(found)


def _compared(config: "CacheTeacherConfig", as_json: bool) -> str:
    from pipeline.comparison.compare import compare_targets
    from pipeline.reporting.progress_bar import Bar
    from pipeline.reports.comparison_report import (
        ComparisonReport,
        comparison_json,
        comparison_text,
    )

    with Bar("compare", unit=" settings", has_rate=False) as bar:
        report = ComparisonReport(bar)
        found = compare_targets(config, report.prepare, report.begin)
    return comparison_json(found) if as_json else comparison_text(found)
