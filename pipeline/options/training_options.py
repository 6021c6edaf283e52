"""Options of the commands that train students: the teacher's whereabouts, copies of a remote cache.

They go to ``train-student``; ``ablate`` passes them on to each of its runs.
"""

from collections.abc import Callable
from typing import Any, TypeVar

import click

from pipeline.options.cache_location import CacheLocation, LocalPath
from pipeline.options.finite_range import FiniteRange

_Command = TypeVar("_Command", bound=Callable[..., Any])

cache_option = click.option(
    "--cache",
    type=CacheLocation(exists=True),
    required=True,
    help="The cache to train on, or its URL.",
)


def teacher_options(command: _Command) -> _Command:
    """``--teacher`` and ``--teacher-in-the-loop``."""
    teacher = click.option(
        "--teacher",
        metavar="TEACHER",
        help="Where all of the teacher's weights are, for a student that holds them, if the cache "
        "was made without cache_teacher.keep_teacher_weights: its directory or Hub id. They have "
        "to be those that the cache was made with.",
    )
    online = click.option(
        "--teacher-in-the-loop",
        "online",
        is_flag=False,
        flag_value="",
        metavar="[TEACHER]",
        help="Load the cache's teacher and train on its full distribution at every position. For "
        "comparison only: every run then needs the teacher's memory and time. TEACHER is its Hub "
        "id or directory, if it has moved since the cache was made.",
    )
    return teacher(online(command))


def local_copies_options(command: _Command) -> _Command:
    """``--local-directory`` and ``--local-gib``."""
    directory = click.option(
        "--local-directory",
        type=LocalPath(file_okay=False, expected="a directory, or a new one"),
        help="Directory for local copies of the shards of a cache at a URL; by default in your "
        "user cache directory. Does not affect the results.",
    )
    gib = click.option(
        "--local-gib",
        type=FiniteRange(min=0.0, min_open=True, max=1_000_000.0),
        default=20.0,
        show_default=True,
        metavar="GIB",
        help="Maximum disk space for these copies; several caches at URLs share it evenly.",
    )
    return directory(gib(command))
