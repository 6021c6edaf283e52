"""``--quiet``, ``--log-file`` and ``--json``, for the commands that run a stage."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from pipeline.options.cache_location import LocalPath
from pipeline.runtime.session import Session

if TYPE_CHECKING:
    from pipeline.reporting.reporter import Reporter

_Command = TypeVar("_Command", bound=Callable[..., Any])


def reporting_options(command: _Command) -> _Command:
    """The three options."""
    quiet = click.option(
        "--quiet",
        is_flag=True,
        help="Print no progress: only warnings and errors on standard error, and one line at the "
        "end.",
    )
    log_file = click.option(
        "--log-file",
        type=LocalPath(dir_okay=False),
        metavar="FILE",
        help="Append progress, warnings, errors and the result to FILE, each line with a "
        "timestamp.",
    )
    as_json = click.option(
        "--json",
        "as_json",
        is_flag=True,
        help="Print one JSON object per line to standard output, nothing else: the events start, "
        "phase, progress, validation, checkpoint, message, warning, and last done or error. "
        "Human-readable progress is printed to standard error, unless --quiet is given. "
        "`pipeline/reporting/events.py` lists the fields.",
    )
    return quiet(log_file(as_json(command)))


def open_reporter(
    session: Session, stage: str, out: Path | str, *, is_first: bool = True, **options: Any
) -> "Reporter":
    """What the command reports to, kept in ``session`` for its errors; ``options`` are the three.

    Of several processes that train one student, only the first one reports. Raises BadParameter
    where there can be no log file, before hours are spent.
    """
    from pipeline.reporting.reporter import Reporter, ReportingOptions

    asked = ReportingOptions(**options)
    if asked.log_file is not None:
        require_place(asked.log_file, out, "--log-file")
    sinks = asked.sinks(stage) if is_first else []
    session.reporter = Reporter(sinks, is_quiet=asked.quiet or not is_first)
    return session.reporter


def require_place(file: Path, out: Path | str, option: str) -> None:
    """Raise BadParameter where ``file`` lies in ``out``, or in no directory."""
    if isinstance(out, Path) and file.resolve().is_relative_to(out.resolve()):
        raise click.BadParameter(f"{file} is inside {out}; choose another place", param_hint=option)
    if not file.resolve().parent.is_dir():
        raise click.BadParameter(f"{file.parent}: no such directory", param_hint=option)


def require_writable_place(file: Path, option: str) -> None:
    """Raise BadParameter where ``file``, a result, cannot be published: before the work is done."""
    parent = file.resolve().parent
    if not parent.is_dir():
        raise click.BadParameter(
            f"{file.parent}: no such directory; create it, or choose another place",
            param_hint=option,
        )
    if not os.access(parent, os.W_OK | os.X_OK):
        raise click.BadParameter(
            f"{file.parent}: not writable; make it so, or choose another place", param_hint=option
        )


def send_start(reporter: "Reporter", command: str, **fields: str) -> None:
    """The first event: what was asked for, and of which version."""
    from importlib.metadata import version

    from pipeline.reporting.events import Event

    text = " · ".join(f"{name} {value}" for name, value in fields.items())
    all_fields = {"command": command, "version": version("xlstm-distill"), **fields}
    reporter.send(Event(name="start", text=f"{command}: {text}", fields=all_fields))
