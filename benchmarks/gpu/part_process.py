"""Runs one part of the GPU benchmark in a process of its own, for so long and no longer.

In: a part, and the seconds that it may take. Out: what is written of it: ``figures``, or why there
are none. What it says on its standard error goes to a file.
"""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks.gpu.parts import Part

_ROOT = Path(__file__).parents[2]
_LAST_LINES = 5  # of a failure's standard error, that are shown


def run_part(part: Part, seconds: float, log: Path) -> dict[str, Any]:
    """``figures`` or ``failed``, with ``seconds`` and ``arguments``. Raises nothing of the part."""
    begin = time.monotonic()
    with log.open("wb") as errors:
        process = subprocess.Popen(
            command_of(part),
            stdout=subprocess.PIPE,
            stderr=errors,
            cwd=_ROOT,
            start_new_session=True,  # so that its own processes end with it
        )
        try:
            output, _ = process.communicate(timeout=seconds)
            found = _result(process.returncode, output, log)
        except subprocess.TimeoutExpired:
            found = {"failed": f"stopped after {seconds:.0f} seconds: {_last_lines(log)}"}
        finally:
            _end(process)
    took = round(time.monotonic() - begin, 1)
    return {"arguments": " ".join(part.arguments), "seconds": took, **found}


def command_of(part: Part) -> list[str]:
    """What runs it."""
    return [sys.executable, "-m", "benchmarks", *part.arguments, "--json"]


def _result(returncode: int, output: bytes, log: Path) -> dict[str, Any]:
    if returncode != 0:
        ended = f"exit status {returncode}"
        if returncode < 0:
            ended = f"ended by {signal.Signals(-returncode).name}"
        return {"failed": f"{ended}: {_last_lines(log)}"}
    lines = output.decode(errors="replace").splitlines()
    try:
        return {"figures": json.loads(lines[-1])}
    except (IndexError, ValueError):
        return {"failed": f"printed no JSON object, but {output[-200:]!r}"}


def _end(process: "subprocess.Popen[bytes]") -> None:
    """End the process and all that it has started."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        return
    finally:
        process.wait()
        if process.stdout is not None:
            process.stdout.close()


def _last_lines(log: Path) -> str:
    return " | ".join(log.read_text(errors="replace").splitlines()[-_LAST_LINES:])
