"""``pipeline train-student``: read its options, run stage two, say what came of it."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Any

import click

from pipeline.options.cache_location import LocalPath
from pipeline.options.recipe_options import load_session_recipe, recipe_options
from pipeline.options.reporting_options import (
    open_reporter,
    reporting_options,
    require_place,
    send_start,
)
from pipeline.options.training_options import local_copies_options, teacher_options
from pipeline.options.weighted_caches import WeightedCache, WeightedCacheLocation, weights_of
from pipeline.runtime.session import Session
from pipeline.runtime.silence_libraries import silence_libraries

if TYPE_CHECKING:
    from pipeline.recipes.recipe import Recipe
    from pipeline.reporting.events import Event
    from pipeline.reporting.stages import TrainReport
    from stages.train_student.data.mixture import CacheMixture
    from stages.train_student.losses.teacher_signal import LoadTeacher

_DIRECTORY = LocalPath(file_okay=False, expected="a directory, or a new one")


@dataclass(frozen=True, kw_only=True)
class _RunOptions:
    """Which run, and from where it goes on, as the command line has it."""

    out: Path
    resume: bool
    init: Path | None
    extend_to: int | None
    teacher: str | None
    """Where the teacher's weights are, if not in the cache."""
    online: str | None
    """The teacher in the loop: None without one; "" if it is where the cache says."""


@click.command("train-student")
@recipe_options
@click.option(
    "--cache",
    "named",
    type=WeightedCacheLocation(),
    required=True,
    multiple=True,
    metavar="CACHE[=WEIGHT]",
    help="The cache to train on, or its URL. Repeat it to train on several caches of one teacher: "
    "rows are drawn from each in proportion to its WEIGHT or, if none has one, to its number of "
    "rows. Weights need not add up to 1. Only a number after the last '=' is a weight, and an "
    "existing directory of the whole name is never taken apart.",
)
@click.option("--out", type=_DIRECTORY, required=True, help="Directory of the run.")
@click.option(
    "--resume",
    is_flag=True,
    help="Resume from the newest checkpoint in --out; start a run if there is none yet.",
)
@click.option(
    "--init",
    type=LocalPath(exists=True, file_okay=False),
    metavar="RUN|MODEL",
    help="Start a new run from the trained weights of another: its model or, if there is none yet, "
    "its newest checkpoint. Steps, schedules and AdamW's moments start over. Recipe, number of "
    "steps and cache may differ; blocks and teacher must be the same. Not needed with --resume.",
)
@click.option(
    "--extend-to",
    type=click.IntRange(min=1, max=2**62),
    metavar="STEPS",
    help="With --resume: continue training to step STEPS. Finished steps are not changed. The "
    "remaining steps use the learning rate of a run of STEPS steps: if it has already decayed to "
    "0, it jumps back up to that run's value, then decays to 0 at STEPS. The run records STEPS, so "
    "a later --resume alone continues to it. At the end, the new model replaces the old one.",
)
@teacher_options
@local_copies_options
@reporting_options
@click.pass_obj
def train_student(
    session: Session,
    /,
    recipe_name: str,
    settings: Sequence[str],
    named: tuple[WeightedCache, ...],
    local_directory: Path | None,
    local_gib: float,
    **options: Any,
) -> None:
    """Train a student from a cache, or from several. The teacher is not needed and not loaded.

    \b
      pipeline train-student --recipe distil-xlstm --cache cache --out run
      torchrun --nproc-per-node 4 -m pipeline train-student …      # 4 GPUs, the same student
      pipeline train-student --recipe distil-xlstm --cache cache --out run --resume --extend-to 9000
      pipeline train-student --recipe distil-xlstm --cache cache --out run-2 --init run
      pipeline train-student --recipe distil-xlstm --cache web=0.7 --cache math=0.3 --out mixed

    The third command continues a finished run; the fourth one starts a new run from its weights.
    The last one draws 7 of 10 rows from the cache web, 3 from math, and validates on each.

    Writes run/recipe.toml, run/metrics.jsonl, run/tensorboard, run/checkpoints and, at the end,
    run/model: a Hugging Face model directory.

    On Ctrl-C or SIGTERM, the current step is abandoned and a checkpoint of the last finished step
    is saved; a second Ctrl-C stops without saving. To continue after any interruption, run the same
    command with --resume.
    """
    reporting = {name: options.pop(name) for name in ("quiet", "log_file", "as_json")}
    run = _RunOptions(**options)
    if run.extend_to is not None and not run.resume:
        raise click.UsageError("--extend-to continues a run: add --resume")
    weights = weights_of(named)
    if reporting["log_file"] is not None:
        for cache in named:
            require_place(reporting["log_file"], cache.place, "--log-file")
    reporter = open_reporter(session, "train", run.out, is_first=_is_first(), **reporting)
    recipe = load_session_recipe(session, recipe_name, settings, ignored="cache_teacher")
    caches = ", ".join(map(_shown, named))
    send_start(reporter, "train-student", recipe=recipe_name, cache=caches, out=str(run.out))
    mixture = _opened(named, weights, local_directory, int(local_gib * 2**30))
    _check_early(recipe, mixture, run)
    silence_libraries(show_downloads=not reporter.is_quiet)
    from pipeline.reporting.stages import TrainReport
    from stages.train_student.data.temperatures import validation_temperature

    targets = mixture.reference.spec.targets
    report = TrainReport(reporter.send, validation_temperature(targets.inverse_temperatures))
    with reporter:
        metrics = _run_stage_two(recipe, mixture, run, report)
    if _is_first():
        reporter.send(_done(run.out, metrics, report))


def _shown(cache: WeightedCache) -> str:
    return str(cache.place) if cache.weight is None else f"{cache.place}={cache.weight:g}"


def _opened(
    named: Sequence[WeightedCache],
    weights: Sequence[float] | None,
    directory: Path | None,
    local_bytes: int,
) -> "CacheMixture":
    """The caches, opened. Each at a URL has an equal part of the space for copies."""
    import cache_format
    from cache_format.storage.base import is_url
    from stages.train_student.data.mixture import mix

    num_remote = sum(is_url(cache.place) for cache in named)
    room = max(1, local_bytes // max(1, num_remote))
    opened = [
        cache_format.open(cache.place, local_directory=directory, local_bytes=room)
        for cache in named
    ]
    return mix(opened, weights)


def _is_first() -> bool:
    """Whether this is the one of torchrun's processes that reports."""
    return os.environ.get("RANK", "0") == "0"


def _check_early(recipe: "Recipe", mixture: "CacheMixture", run: _RunOptions) -> None:
    """Refuse what can be refused before torch is imported."""
    if os.environ.get("WORLD_SIZE", "1") != "1":
        return  # of several processes all have to refuse, not one
    from stages.train_student.preflight import check_early

    is_online = run.online is not None
    teacher = None if run.teacher is None else Path(run.teacher)
    check_early(
        recipe.train_student, mixture, run.out, resume=run.resume, online=is_online, teacher=teacher
    )


def _run_stage_two(
    recipe: "Recipe", mixture: "CacheMixture", run: _RunOptions, report: "TrainReport"
) -> dict[str, float]:
    """Train, and return the last validation's metrics. A signal ends the command."""
    from pipeline.runtime.signals import asked_to_stop
    from stages.train_student.distributed.context import OtherProcessFailedError
    from stages.train_student.run import train_student
    from stages.train_student.trainer.stopping import StopNow, StoppedError, StopRequest

    with asked_to_stop() as request:
        try:
            return train_student(
                recipe.train_student,
                mixture,
                run.out,
                resume=run.resume,
                recipe_toml=recipe.to_toml(),
                report=report if _is_first() else lambda _: None,
                stop=StopRequest(is_made=request.is_made, interruptible=request.interruptible),
                load_teacher=_teacher_loader(recipe, mixture, run),
                init=run.init,
                teacher=_teacher_directory(mixture, run),
                extend_to=run.extend_to,
            )
        except (StoppedError, StopNow):
            raise (request.exception() if _is_first() else click.exceptions.Exit(1)) from None
        except OtherProcessFailedError as error:  # which has said why
            if _is_first():
                raise click.ClickException(f"{error}. See its own error message.") from None
            raise click.exceptions.Exit(1) from None


def _teacher_directory(mixture: "CacheMixture", run: _RunOptions) -> Path | None:
    """The directory that --teacher names, fetched from the Hub if need be."""
    if run.teacher is None:
        return None
    from pipeline.students.teacher_directory import find_teacher_directory

    return find_teacher_directory(run.teacher, mixture.reference)


def _teacher_loader(
    recipe: "Recipe", mixture: "CacheMixture", run: _RunOptions
) -> "LoadTeacher | None":
    """What loads the teacher in the loop, if there is to be one."""
    if run.online is None:
        return None
    from pipeline.students.online_teacher import load_online_teacher
    from stages.train_student.losses.terms import cache_needs

    with_mean = bool(cache_needs(recipe.train_student).hidden_states_for)
    cache = mixture.reference
    return partial(load_online_teacher, cache, with_mean=with_mean, place=run.online or None)


def _done(out: Path, metrics: dict[str, float], report: "TrainReport") -> "Event":
    """What came of it, and the next command."""
    from pipeline.reporting.events import Event

    text = (
        f"{out / 'model'} holds the student. Validation: {report.validation_figures(metrics)}.\n"
        f'Next:\n  pipeline generate {quote(str(out))} --prompt "Once upon a time"'
    )
    fields = {"out": str(out), "model": str(out / "model"), "metrics": metrics}
    return Event(name="done", text=text, fields=fields)
