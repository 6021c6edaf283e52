"""Run stage one, and report its progress and what came of it.

In: a recipe, the place of the cache, and who makes its units. Out: an ``Outcome``, as an event.
"""

import os
from dataclasses import dataclass
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Any

import click

from pipeline.runtime.silence_libraries import silence_libraries
from stages.cache_teacher.config import ALL_UNITS, UnitRange
from stages.cache_teacher.worker_share import WorkerShare

if TYPE_CHECKING:
    from cache_format.metadata.manifest import Manifest
    from pipeline.recipes.recipe import Recipe
    from pipeline.reporting.reporter import Reporter
    from stages.cache_teacher.engine.ray_engine import RaySettings
    from stages.cache_teacher.reporting.progress import CacheProgress


@dataclass(frozen=True, kw_only=True)
class EngineOptions:
    """Who makes the units, as the command line has it."""

    units: str | None = None
    worker: str | None = None
    engine: str = "local"
    ray_workers: int | None = None
    ray_address: str | None = None

    def checked(self) -> "EngineOptions":
        """Itself. Raises UsageError where options do not go together, or mean nothing."""
        self.share()
        if self.units is not None and self.worker is not None:
            raise click.UsageError("--units and --worker: each selects the units; give only one")
        if self.engine == "ray" and (self.units is not None or self.worker is not None):
            raise click.UsageError("--engine ray caches all units: leave out --units and --worker")
        if self.engine != "ray" and (self.ray_workers or self.ray_address):
            raise click.UsageError("--ray-workers and --ray-address go with --engine ray")
        return self

    def share(self) -> UnitRange | WorkerShare:
        """The units to make."""
        hint = "--units" if self.worker is None else "--worker"
        try:
            if self.worker is not None:
                return WorkerShare.parse(self.worker, os.environ)
            return ALL_UNITS if self.units is None else UnitRange.parse(self.units)
        except ValueError as error:
            raise click.BadParameter(str(error), param_hint=hint) from error

    def ray(self) -> "RaySettings | None":
        """The cluster, if one is asked for."""
        from stages.cache_teacher.engine.ray_engine import RaySettings

        if self.engine != "ray":
            return None
        return RaySettings(num_workers=self.ray_workers, address=self.ray_address)


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What the cache holds, and what this run did for it."""

    manifest: "Manifest"
    progress: "CacheProgress"
    share: UnitRange | WorkerShare


def run_stage_one(
    recipe: "Recipe", out: Path | str, engine: EngineOptions, reporter: "Reporter"
) -> Outcome:
    """Fill the cache at ``out`` as ``recipe`` says."""
    from stages.cache_teacher.preflight import check_early

    check_early(recipe.cache_teacher, out)
    silence_libraries(show_downloads=not reporter.is_quiet)
    from pipeline.reporting.stages import CacheReport
    from stages.cache_teacher.run import cache_teacher

    with reporter:
        report = CacheReport(reporter.send)
        manifest = cache_teacher(
            recipe.cache_teacher,
            out,
            recipe_toml=recipe.to_toml(),
            report=report,
            units=engine.share(),
            ray=engine.ray(),
        )
    assert report.last is not None, "a run tells how far it is"
    return Outcome(manifest=manifest, progress=report.last, share=engine.share())


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
    outcome: Outcome, out: Path | str, recipe_name: str, reporter: "Reporter"
) -> dict[str, Any]:
    """Report what the cache holds and the next command; returns the figures of it."""
    from pipeline.reporting.events import Event
    from stages.cache_teacher.reporting.summary import summarise_run

    figures = summarise_run(outcome.manifest, outcome.progress)
    text = cached_text(outcome, out, recipe_name)
    reporter.send(Event(name="done", text=text, fields={"out": str(out), **figures}))
    return figures


def cached_text(outcome: Outcome, out: Path | str, recipe_name: str) -> str:
    """What the cache holds, on the first line; what was made, and the next command."""
    held, heading, command = _held_text(outcome, out, recipe_name).partition("Next:\n")
    lines = [held.rstrip(), *_run_lines(outcome)]
    return "\n".join([*lines, heading + command] if command else lines)


def _run_lines(outcome: Outcome) -> list[str]:
    """How fast it went, if anything was made."""
    from pipeline.reporting.progress_bar import short, size
    from pipeline.reporting.stages import device_figures

    progress = outcome.progress
    if progress.tokens_cached_this_run == 0 or progress.seconds <= 0:
        return []
    rate = progress.tokens_cached_this_run / progress.seconds
    figures = [
        f"Cached {short(progress.tokens_cached_this_run)} tokens in {progress.seconds:,.0f} s",
        f"{short(round(rate))} tokens/s",
        *device_figures(progress),
        f"{size(progress.bytes_written)}, "
        f"{progress.bytes_written / progress.tokens_cached_this_run:.1f} bytes/token",
    ]
    return [" · ".join(figures) + "."]


def _held_text(outcome: Outcome, out: Path | str, recipe_name: str) -> str:
    from pipeline.reporting.progress_bar import short
    from stages.cache_teacher.reporting.split_shares import shares_of

    manifest, missing = outcome.manifest, outcome.progress.missing_units
    num_tokens = sum(shard.num_tokens for shard in manifest.shards)
    held = f"{out} holds {short(num_tokens)} tokens in {len(manifest.shards)} shards."
    if missing:
        return (
            f"{held} This worker has made its share; {len(missing)} units of other workers were "
            f"not finished ({_some(missing)}). The last worker to end completes the cache. What "
            "a lost one leaves, the same command without --worker makes."
        )
    if not manifest.complete:
        return (
            f"{held} It is a part: units before them, or after, are missing. When the other parts "
            f"are made:\n  pipeline merge {quote(str(out))} OTHER... --out CACHE"
        )
    shares = shares_of(manifest)
    held = f"{held} Validation is {shares.validation_share:.1%} of the rows."
    if shares.advice:
        held = f"{held} {shares.advice}"
    if shares.num_validation_rows == shares.num_rows:
        return held
    return (
        f"{held} Next:\n  pipeline train-student --recipe {recipe_name} "
        f"--cache {quote(str(out))} --out RUN"
    )


def _some(units: tuple[int, ...]) -> str:
    return ", ".join(map(str, units[:10])) + (", …" if len(units) > 10 else "")
