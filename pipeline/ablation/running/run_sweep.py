"""Run a sweep that has been checked: its runs that are left, so many at a time.

In: an overview of the runs and what starts processes. Out: their directories, and the failures.
Finished runs are never started again; the others go on from their newest checkpoints.
"""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cache_format.errors import AdvisedError
from cache_format.storage.atomic import lock_unless_held, make_directory
from pipeline.ablation.planning.checks import is_finished
from pipeline.ablation.planning.overview import Overview
from pipeline.ablation.planning.planned_runs import PlannedRun
from pipeline.ablation.planning.run_size import bytes_below
from pipeline.ablation.planning.sweep_copy import log_of, recipe_file, write_copy, write_recipe
from pipeline.ablation.planning.train_command import TrainCommand
from pipeline.ablation.running.processes import Job, Launch, Started
from pipeline.ablation.running.progress import Send, SweepProgress
from pipeline.ablation.running.run_pool import PoolEvents, RunPool, State
from pipeline.reporting.lines import size
from pipeline.run_report.recorded.recorded_run import is_held


@contextmanager
def held_sweep(out: Path) -> Iterator[None]:
    """Keep other sweeps out of ``out``. Raises ValueError if one is in it."""
    make_directory(out)
    with lock_unless_held(out) as is_ours:
        if not is_ours:
            raise AdvisedError(
                f"{out}: another process runs a sweep in it.",
                "Wait for it, or choose another --out.",
            )
        yield


def run_sweep(
    overview: Overview, command: TrainCommand, launch: Launch, send: Send
) -> dict[str, str]:
    """Train what is left of ``overview``; returns why runs failed, by their names.

    An interruption asks the runs to save, waits for them, and is raised again.
    """
    out = overview.out
    write_copy(overview.plan, out)
    runs = {each.run.name: each.run for each in overview.left}
    progress = SweepProgress(
        send,
        {each.run.name: each.size for each in overview.runs},
        [each.run.name for each in overview.runs if each.state == "finished"],
    )

    def launch_with_recipe(job: Job, slot: int) -> Started:
        write_recipe(out, runs[job.name])
        return launch(job, slot)

    events = PoolEvents(
        started=progress.started,
        ended=progress.ended,
        stopping=progress.stopping,
        waiting=progress.waiting,
        looked=progress.looked,
        state_of=_state_of,
    )
    pool = RunPool(overview.num_slots, launch_with_recipe, events)
    pool.run([_job(run, out, command) for run in runs.values()])
    return progress.failures


def disk_problems(overview: Overview) -> Iterator[str]:
    """Whether what is left fits on the disk, as far as its size is known."""
    place = overview.out.absolute()
    while not place.exists():
        place = place.parent
    begun = [overview.out / each.run.name for each in overview.left if each.state == "begun"]
    needed = overview.bytes_left - sum(map(bytes_below, begun))
    free = shutil.disk_usage(place).free
    if needed > free:
        yield (
            f"{place}: {size(free)} are free, and the runs need up to {size(needed)}. Free some "
            "space, choose another --out, or lower train_student.save_total_limit under [set]."
        )


def device_problems(overview: Overview) -> Iterator[str]:
    """What keeps runs from being trained on the GPUs that they are given."""
    for device in sorted({each.run.config.device for each in overview.left}):
        if ":" in device:
            yield (
                f"train_student.device: {device!r}, but with --jobs or --engine ray a sweep gives "
                'each run a GPU. Set it to "auto".'
            )


def _job(run: PlannedRun, out: Path, command: TrainCommand) -> Job:
    place = out / run.name
    return Job(
        name=run.name,
        arguments=command.arguments(recipe_file(out, run), place),
        out=place,
        log=log_of(out, run.name),
    )


def _state_of(job: Job) -> State:
    """A run of a sweep that was killed may still be saving, or have finished meanwhile."""
    if is_held(job.out):
        return "held"
    return "finished" if is_finished(job.out) else "open"
