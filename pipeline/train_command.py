"""``pipeline train-student``: read its options, run stage two, say what came of it.

Nothing heavy is imported before the recipe has been checked.
"""

import os
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING

import click

from pipeline.cache_location import CacheLocation, LocalPath
from pipeline.finite_range import FiniteRange
from pipeline.quiet import quieten
from pipeline.recipe_options import load_session_recipe, recipe_options
from pipeline.session import Session

if TYPE_CHECKING:
    from cache_format.reader import Cache
    from pipeline.progress import Bar
    from stages.train_student.config import TrainStudentConfig
    from stages.train_student.objective.online import LoadTeacher
    from stages.train_student.training.progress import TrainProgress

_DIRECTORY = LocalPath(file_okay=False)


@click.command("train-student")
@recipe_options
@click.option(
    "--cache",
    type=CacheLocation(exists=True),
    required=True,
    help="The cache to learn from, or its URL.",
)
@click.option("--out", type=_DIRECTORY, required=True, help="Directory of the run.")
@click.option("--resume", is_flag=True, help="Go on from the newest checkpoint in --out.")
@click.option(
    "--teacher-in-the-loop",
    "online",
    is_flag=False,
    flag_value="",
    metavar="[TEACHER]",
    help="Load the cache's teacher and learn from its whole distribution at every position. For "
    "comparison only: it costs the teacher's memory and time in every run. TEACHER is its Hub id "
    "or directory, if it is no longer where the cache was made from.",
)
@click.option(
    "--local-directory",
    type=_DIRECTORY,
    help="Where shards of a cache at a URL are copied to; by default in your cache directory. Not "
    "in the recipe: it is this machine's affair, and no result depends on it.",
)
@click.option(
    "--local-gib",
    type=FiniteRange(min=0.0, min_open=True, max=1_000_000.0),
    default=20.0,
    show_default=True,
    metavar="GIB",
    help="The most that these copies take.",
)
@click.pass_obj
def train_student(
    session: Session,
    recipe_name: str,
    settings: Sequence[str],
    cache: Path | str,
    out: Path,
    resume: bool,
    online: str | None,
    local_directory: Path | None,
    local_gib: float,
) -> None:
    """Train a student from a cache. The teacher is not needed, nor loaded.

    \b
      pipeline train-student --recipe distil-xlstm --cache cache --out run
      torchrun --nproc-per-node 4 -m pipeline train-student …      # 4 GPUs, the same student

    Writes run/recipe.toml, run/metrics.jsonl, run/tensorboard, run/checkpoints and, at the end,
    run/model: a Hugging Face model directory.

    Ctrl-C (or SIGTERM) saves a checkpoint of the last finished step and stops, whatever it is at;
    a second one stops without. To go on after that, or after any other interruption, type the same
    command with --resume.
    """
    recipe = load_session_recipe(session, recipe_name, settings, ignored="cache_teacher")
    quieten()
    import cache_format
    from pipeline.progress import Bar, validation_figures
    from pipeline.stopping import asked_to_stop
    from stages.train_student.run import train_student as run
    from stages.train_student.training.processes import OtherProcessFailedError
    from stages.train_student.training.stopping import StopNow, StoppedError, StopRequest

    opened = cache_format.open(
        cache, local_directory=local_directory, local_bytes=max(1, int(local_gib * 2**30))
    )
    is_first = os.environ.get("RANK", "0") == "0"
    with Bar("train") as bar, asked_to_stop() as request:
        try:
            metrics = run(
                recipe.train_student,
                opened,
                out,
                resume=resume,
                recipe_toml=recipe.to_toml(),
                report=_report(bar, is_first),
                stop=StopRequest(is_made=request.is_made, interruptible=request.interruptible),
                load_teacher=_teacher_loader(opened, recipe.train_student, online),
            )
        except (StoppedError, StopNow):
            raise (request.exception() if is_first else click.exceptions.Exit(1)) from None
        except OtherProcessFailedError as error:  # which has said why
            if is_first:
                click.echo(f"Error: {error}. Its message tells why.", err=True)
            raise click.exceptions.Exit(1) from None
    if is_first:
        click.echo(
            f"{validation_figures(metrics)}\n{out / 'model'} holds the student. Next:\n"
            f'  pipeline generate {quote(str(out))} --prompt "Once upon a time"'
        )


def _teacher_loader(
    cache: "Cache", config: "TrainStudentConfig", place: str | None
) -> "LoadTeacher | None":
    """What loads the teacher in the loop; ``place`` is none if there is to be none."""
    if place is None:
        return None
    from pipeline.online_teacher import load_online_teacher

    with_mean = max(config.beta_start, config.beta_end) > 0
    return partial(load_online_teacher, cache, with_mean=with_mean, place=place or None)


def _report(bar: "Bar", is_first: bool) -> "Callable[[TrainProgress], None]":
    """Of several processes the first one speaks."""
    from pipeline.progress import TrainReport

    return TrainReport(bar) if is_first else lambda _: None
