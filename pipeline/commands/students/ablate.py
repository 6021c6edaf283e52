"""``pipeline ablate``: a sweep of students from one cache, checked as a whole before it starts."""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pipeline.options.cache_location import LocalPath
from pipeline.options.ray_options import RayOptions, ray_options
from pipeline.options.reporting_options import (
    open_reporter,
    reporting_options,
    require_place,
    send_start,
)
from pipeline.options.training_options import (
    cache_option,
    local_copies_options,
    teacher_options,
)
from pipeline.runtime.session import Session

if TYPE_CHECKING:
    from cache_format.reader import Cache
    from pipeline.ablation.planning.overview import Overview
    from pipeline.ablation.planning.planned_runs import Plan, Problems
    from pipeline.ablation.planning.train_command import TrainCommand
    from pipeline.ablation.running.processes import Places
    from pipeline.reporting.reporter import Reporter


@dataclass(frozen=True, kw_only=True)
class _Options:
    """What is done with a sweep, as the command line has it."""

    out: Path
    jobs: int
    ray: RayOptions
    is_dry: bool
    has_trial: bool


@click.command()
@click.argument(
    "sweep",
    type=LocalPath(exists=True, dir_okay=False),
    metavar="SWEEP.toml",
)
@cache_option
@click.option(
    "--out",
    type=LocalPath(file_okay=False, expected="a directory, or a new one"),
    required=True,
    help="Directory of the sweep, with a directory for each run.",
)
@click.option(
    "--jobs",
    type=click.IntRange(min=1, max=1024),
    metavar="N",
    help="Runs at a time on this machine; by default one. Each gets one GPU, or its share of the "
    "cores.",
)
@ray_options(
    engine_help="Where runs are trained: on this machine, or on the machines of a Ray cluster, "
    "which have to reach --out and the cache under the same paths.",
    workers_help="Runs at a time in the cluster, each with one GPU, or its share of the "
    "processors; by default one per GPU, or one without GPUs.",
)
@click.option(
    "--dry-run",
    is_flag=True,
    help="Check everything, and print the runs, their steps and tokens and how long they will "
    "take. Writes nothing to --out.",
)
@click.option(
    "--trial/--no-trial",
    default=True,
    show_default=True,
    help="First train each variant for a few steps in a temporary directory: finds students that "
    "cannot be built, and measures time and disk space.",
)
@click.option(
    "--init",
    type=LocalPath(exists=True, file_okay=False),
    metavar="RUN|MODEL",
    help="Start every run from the trained weights of another; see `pipeline train-student`.",
)
@teacher_options
@local_copies_options
@reporting_options
@click.pass_obj
def ablate(
    session: Session,
    /,
    sweep: Path,
    cache: Path | str,
    out: Path,
    jobs: int | None,
    engine: str,
    ray_workers: int | None,
    ray_address: str | None,
    dry_run: bool,
    trial: bool,
    init: Path | None,
    teacher: str | None,
    online: str | None,
    local_directory: Path | None,
    local_gib: float,
    **reporting: Any,
) -> None:
    """Train a sweep of students: variants, a grid, seeds.

    \b
      pipeline ablate sweep.toml --cache cache --out sweep --dry-run
      pipeline ablate sweep.toml --cache cache --out sweep --jobs 2

    \b
      recipe = "distil-xlstm"
      seeds = [0, 1, 2]
      [variant.base]
      [variant.no-frobenius]
      train_student.beta_start = 0.0
      train_student.beta_end = 0.0
      [grid]
      "train_student.learning_rate" = [1e-4, 2e-4]

    Trains every variant at every point of the grid with every seed: 12 runs here. Each is an
    ordinary run of train-student in OUT/VARIANT/KEY=VALUE/seed=N, with its recipe and log beside
    it. All recipes are checked against the cache before the first one starts. A run that fails
    stops none of the others.

    To continue after any interruption, or with more variants, run the same command again: finished
    runs are kept, and the others continue from their newest checkpoints. With --engine ray, a run
    whose machine is lost does so by itself, on another one.
    """
    from pipeline.ablation.planning.planned_runs import Problems, plan_runs
    from pipeline.ablation.planning.sweep import load_sweep
    from pipeline.ablation.planning.train_command import TrainCommand

    if reporting["log_file"] is not None:
        require_place(reporting["log_file"], cache, "--log-file")
    ray = RayOptions(engine=engine, ray_workers=ray_workers, ray_address=ray_address)
    ray.require_consistent()
    if ray.is_ray and jobs is not None:
        raise click.UsageError("--jobs goes with --engine local; --ray-workers sets the number")
    out = out.absolute() if ray.is_ray else out
    reporter = open_reporter(session, "ablate", out, **reporting)
    problems = Problems()
    plan = plan_runs(load_sweep(sweep), problems)
    send_start(reporter, "ablate", sweep=str(sweep), cache=str(cache), out=str(out))
    import cache_format

    opened = cache_format.open(
        cache, local_directory=local_directory, local_bytes=max(1, int(local_gib * 2**30))
    )
    command = TrainCommand(
        cache=cache,
        init=init,
        teacher=teacher,
        online=online,
        local_directory=local_directory,
        local_gib=local_gib if isinstance(cache, str) else None,
    )
    command = command.absolute() if ray.is_ray else command
    with reporter:
        options = _Options(out=out, jobs=jobs or 1, ray=ray, is_dry=dry_run, has_trial=trial)
        overview, failures = _ablate(plan, problems, opened, command, options, reporter)
    if dry_run:
        text = f"{overview.sentence()}\n\n{overview.table()}"
        _send_done(reporter, text, overview.fields())
    else:
        _finish(overview, failures, reporter)


def _ablate(
    plan: "Plan",
    problems: "Problems",
    cache: "Cache",
    command: "TrainCommand",
    options: _Options,
    reporter: "Reporter",
) -> tuple["Overview", dict[str, str]]:
    """Check, try, and unless it is a dry run, run the sweep; returns what failed, and why."""
    from pipeline.ablation.planning.checks import check_runs, left_over
    from pipeline.ablation.planning.overview import Overview
    from pipeline.ablation.running.run_sweep import (
        device_problems,
        disk_problems,
        held_sweep,
        run_sweep,
    )
    from pipeline.ablation.running.trial import measure_points

    out = options.out
    checked = check_runs(plan, cache, out, command, problems)
    problems.raise_any(plan.sweep.source)
    devices = [each.run.config.device for each in checked if each.state != "finished"]
    with (
        nullcontext() if options.is_dry else held_sweep(out),
        _places(devices, command, options, reporter) as places,
    ):
        trials = measure_points(
            *(checked, plan, out, command, places),
            has_trial=options.has_trial,
            say=lambda text: _say(reporter, text),
        )
        overview = Overview(
            plan=plan,
            out=out,
            runs=checked,
            measured=trials.measured,
            num_slots=places.num_slots,
        )
        for name, failure in trials.failures.items():
            problems.add(name, [f"failed within its first steps: {failure}"])
        problems.add("", disk_problems(overview))
        problems.add("", device_problems(overview) if places.gives_gpus else [])
        if text := problems.text(plan.sweep.source):
            raise click.ClickException(text)
        if unknown := left_over(plan, out):
            _say(reporter, _left_over_text(unknown))
        if options.is_dry:
            return overview, {}
        _say(reporter, overview.sentence())
        return overview, run_sweep(overview, command, places.launch, reporter.send)


def _places(
    devices: Sequence[str], command: "TrainCommand", options: _Options, reporter: "Reporter"
) -> AbstractContextManager["Places"]:
    """Where the runs that are left go, whose recipes have these ``devices``."""
    from pipeline.ablation.running.processes import local_places

    if not (options.ray.is_ray and devices):
        return nullcontext(local_places(devices, max(1, min(options.jobs, len(devices)))))
    from pipeline.ablation.running.ray_places import ray_places

    return ray_places(
        devices,
        options.ray.ray_workers,
        options.ray.ray_address,
        options.out,
        list(command.inputs()),
        lambda job, text: _say(reporter, f"{job.name}: {text}"),
    )


def _finish(overview: "Overview", failures: dict[str, str], reporter: "Reporter") -> None:
    """The table; and an error if a run failed."""
    from pipeline.ablation.planning.sweep_copy import log_of
    from pipeline.ablation.running.outcome import outcome_text

    out, num_runs = overview.out, len(overview.runs)
    table = outcome_text(overview.plan, out)
    if not failures:
        text = f"{out}: all {num_runs} runs are finished.\n\n{table}"
        _send_done(reporter, text, {"out": str(out), "runs": num_runs})
        return
    if table:
        _say(reporter, table)
    lines = [f"{len(failures)} of {num_runs} runs failed:"]
    for name, failure in failures.items():
        lines += [f"  {name}: {failure}", f"    log: {log_of(out, name)}"]
    raise click.ClickException(
        "\n".join([*lines, "The others are kept. Run the same command again to try these again."])
    )


def _say(reporter: "Reporter", text: str) -> None:
    from pipeline.reporting.events import Event

    reporter.send(Event(name="message", text=text, fields={"message": text}))


def _send_done(reporter: "Reporter", text: str, fields: dict[str, Any]) -> None:
    from pipeline.reporting.events import Event

    reporter.send(Event(name="done", text=text, fields=fields))


def _left_over_text(names: list[str]) -> str:
    shown = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
    return f"not in this sweep, and left as they are: {shown}"
