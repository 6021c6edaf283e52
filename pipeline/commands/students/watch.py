"""``pipeline watch``: a run or a sweep as it goes on, in the terminal."""

from pathlib import Path

import click

from pipeline.options.cache_location import LocalPath
from pipeline.options.finite_range import FiniteRange


@click.command()
@click.argument(
    "path",
    type=LocalPath(file_okay=False, expected="a run, or the directory of a sweep"),
    metavar="RUN|SWEEP",
)
@click.option("--once", is_flag=True, help="Show what there is now, and end.")
@click.option(
    "--interval",
    type=FiniteRange(min=0.1),
    default=2.0,
    show_default=True,
    metavar="SECONDS",
    help="How often to look.",
)
def watch(path: Path, once: bool, interval: float) -> None:
    """Watch a run or a sweep in the terminal.

    \b
      pipeline watch run
      pipeline watch sweep --once

    Progress, speed and time left, loss terms, validations, gradient norm and schedules, with their
    courses; of a sweep, a line for each run. Reads what train-student and ablate write, locks and
    changes nothing, and works on a run that is going on, has finished, was killed or has not begun,
    on this machine or another one that shares the directory.

    Ends when everything has finished or failed, or with Ctrl-C, which does not concern the run.
    Where the output is not a terminal, each change is a line.
    """
    import io
    import sys

    from rich.console import Console

    from pipeline.watch.follow import follow, show_once
    from pipeline.watch.watched import Watcher

    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # a locale without Unicode
    watcher, console = Watcher(path), Console()
    if once:
        show_once(watcher, console)
    else:
        follow(watcher, console, interval)
