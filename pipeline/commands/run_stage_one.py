"""Run stage one, and report its progress and what came of it.

In: a recipe, the place of the cache, and who makes its units. Out: an ``Outcome``, as an event.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.options.engine_options import EngineOptions
from pipeline.runtime.silence_libraries import silence_libraries

if TYPE_CHECKING:
    from pipeline.recipes.recipe import Recipe
    from pipeline.reporting.reporter import Reporter
    from pipeline.reports.cache_report import Outcome


def run_stage_one(
    recipe: "Recipe", out: Path | str, engine: EngineOptions, reporter: "Reporter"
) -> "Outcome":
    """Fill the cache at ``out`` as ``recipe`` says."""
    from stages.cache_teacher.preflight import check_early

    check_early(recipe.cache_teacher, out)
    silence_libraries(show_downloads=not reporter.is_quiet)
    from pipeline.reporting.stages import CacheReport
    from pipeline.reports.cache_report import Outcome
    from stages.cache_teacher.run import cache_teacher

    with reporter:
        report = CacheReport(reporter.send)
        manifest = cache_teacher(
            recipe.cache_teacher,
            out,
            recipe_toml=recipe.to_toml(),
            report=report,
            units=engine.share(),
            engine=engine.cluster(),
        )
    assert report.last is not None, "a run tells how far it is"
    return Outcome(manifest=manifest, progress=report.last)


def send_plan(recipe: "Recipe", out: Path | str, reporter: "Reporter") -> None:
    """Report what ``run_stage_one`` would do."""
    from stages.cache_teacher.preflight import check_early

    check_early(recipe.cache_teacher, out)
    silence_libraries(show_downloads=not reporter.is_quiet)
    from pipeline.reporting.events import Event
    from pipeline.reports.dry_run import plan_fields, plan_text
    from stages.cache_teacher.plan import plan_cache

    with reporter:
        plan = plan_cache(recipe.cache_teacher, out)
    reporter.send(Event(name="done", text=plan_text(plan, out), fields=plan_fields(plan, out)))


def send_outcome(
    outcome: "Outcome", out: Path | str, recipe_name: str, reporter: "Reporter"
) -> dict[str, Any]:
    """Report what the cache holds and the next command; returns the figures of it."""
    from pipeline.reporting.events import Event
    from pipeline.reports.cache_report import cached_text
    from stages.cache_teacher.reporting.summary import summarise_run

    figures = summarise_run(outcome.manifest, outcome.progress)
    text = cached_text(outcome, out, recipe_name)
    reporter.send(Event(name="done", text=text, fields={"out": str(out), **figures}))
    return figures
