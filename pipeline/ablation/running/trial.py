"""Try each recipe of a sweep for a few steps, in a temporary directory, before hours are spent.

In: points of a plan. Out: their speed and the size of what they write, or why they cannot be
trained: a student that does not fit its teacher is found here, and not at night.
"""

import tempfile
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from pathlib import Path

from cache_format.storage.atomic import publish_bytes
from pipeline.ablation.planning.checks import CheckedRun
from pipeline.ablation.planning.planned_runs import Plan, Point
from pipeline.ablation.planning.run_size import Measured, measured
from pipeline.ablation.planning.train_command import TrainCommand
from pipeline.ablation.running.failed_run import failure_text
from pipeline.ablation.running.processes import Job, Places
from pipeline.ablation.running.run_pool import PoolEvents, RunPool
from pipeline.recipes.recipe import Recipe

NUM_STEPS = 4
_NEVER = 2**31


@dataclass(kw_only=True)
class Trials:
    """What came of them, by the names of points."""

    measured: dict[str, Measured] = field(default_factory=dict)
    failures: dict[str, str] = field(default_factory=dict)


def measure_points(
    checked: Sequence[CheckedRun],
    plan: Plan,
    out: Path,
    command: TrainCommand,
    places: Places,
    *,
    has_trial: bool,
    say: Callable[[str], None],
) -> Trials:
    """What is known of the points of ``plan``: by runs that have begun and, of others that are
    still to be trained, by a trial if there is to be one."""
    trials = Trials()
    for each in checked:
        if each.state != "new" and (found := measured(out / each.run.name)) is not None:
            trials.measured.setdefault(each.run.point, found)
    left = {each.run.point for each in checked if each.state == "new"} - trials.measured.keys()
    points = [point for point in plan.points if point.name in left]
    if has_trial and points:
        found_now = try_points(points, command, places, say)
        trials.measured |= found_now.measured
        trials.failures = found_now.failures
    return trials


def try_points(
    points: Sequence[Point],
    command: TrainCommand,
    places: Places,
    say: Callable[[str], None],
) -> Trials:
    """Train each of ``points`` for a few steps; ``say`` gets a line each.

    Nothing of it stays on the disk.
    """
    trials = Trials()
    with temporary_directory(places.trials) as root:
        jobs = [
            _job(point, Path(root) / str(number), command) for number, point in enumerate(points)
        ]

        def ended(job: Job, exit_code: int) -> None:
            done = len(trials.measured) + len(trials.failures) + 1
            if exit_code == 0 and (found := measured(job.out)) is not None:
                trials.measured[job.name] = found
                what = f"{found.tokens_per_second:,.0f} tokens/s"
            else:
                trials.failures[job.name] = failure_text(job.log, exit_code)
                what = "failed"
            say(f"tried {job.name} for {NUM_STEPS} steps: {what} ({done} of {len(jobs)})")

        events = PoolEvents(started=lambda _: None, ended=ended)
        RunPool(places.num_slots, places.launch, events).run(jobs)
    return trials


def temporary_directory(below: Path | None) -> AbstractContextManager[str]:
    """For trials; None: TMPDIR says where."""
    return tempfile.TemporaryDirectory(
        prefix="pipeline-ablate-", dir=below, ignore_cleanup_errors=True
    )


def _job(point: Point, directory: Path, command: TrainCommand) -> Job:
    directory.mkdir()
    recipe, out = directory / "recipe.toml", directory / "run"
    publish_bytes(recipe, shortened(point.runs[0].recipe).to_toml().encode())
    return Job(
        name=point.name,
        arguments=command.arguments(recipe, out),
        out=out,
        log=directory / "log",
    )


def shortened(recipe: Recipe) -> Recipe:
    """``recipe`` for a few steps of which each is timed, with the least validation there is."""
    config = recipe.train_student
    num_steps = min(NUM_STEPS, config.max_steps or NUM_STEPS)
    return replace(
        recipe,
        train_student=replace(
            config,
            max_steps=num_steps,
            logging_steps=1,
            eval_steps=_NEVER,
            validation_rows=1,
            save_steps=_NEVER,
            save_total_limit=1,
            report_to=(),
        ),
    )
