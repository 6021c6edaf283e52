"""Why a run failed, as far as its log and its exit code tell."""

import signal
from pathlib import Path

from cache_format.storage.atomic import open_regular
from pipeline.ablation.running.processes import COMMAND_MARK
from pipeline.reporting.printable import printable

_READ_BYTES = 1 << 16
_ERROR = "Error: "
_NO_REASON = "(PIPELINE_DEBUG"
_LONGEST = 500


def failure_text(log: Path, exit_code: int) -> str:
    """The last error of the last command in ``log``, on one line."""
    line = _last_error(log)
    if exit_code < 0:
        name = signal.Signals(-exit_code).name
        why = "; the system may have run out of memory" if name == "SIGKILL" else ""
        return f"ended by {name}{why}"
    if exit_code == 0:
        return "ended without a step that could be timed"
    return line or f"exit code {exit_code}, and nothing was printed"


def error_text(log: Path) -> str:
    """The error that the last command in ``log`` ended with; "" where it was not one, or no log."""
    lines = _lines(log) if log.is_file() else []
    errors = [line.removeprefix(_ERROR) for line in lines if line.startswith(_ERROR)]
    return printable(errors[-1][:_LONGEST], keep="") if errors else ""


def _last_error(log: Path) -> str:
    try:
        lines = _lines(log)
    except OSError as error:
        return f"its log cannot be read: {error}"
    errors = [line.removeprefix(_ERROR) for line in lines if line.startswith(_ERROR)]
    others = [line for line in lines if not line.startswith(_NO_REASON)]
    found = (errors or others or [""])[-1]
    return printable(found[:_LONGEST], keep="")


def _lines(log: Path) -> list[str]:
    """What the last command in ``log`` printed."""
    with open_regular(log) as file:
        file.seek(max(0, log.stat().st_size - _READ_BYTES))
        text = file.read(_READ_BYTES).decode("utf-8", "replace")
    last = text.rpartition(f"\n{COMMAND_MARK}")[2]
    return [line.strip() for line in last.splitlines()[1:] if line.strip()]
