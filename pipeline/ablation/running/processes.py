"""Runs as processes of this machine, each with its log, its share of the cores and its GPU.

The seam of a sweep: whatever else starts runs gives a ``Launch`` as well (see ``ray_places``).
"""

import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from shlex import join
from typing import Protocol

from cache_format.storage.atomic import make_directory

COMMAND_MARK = "$ "
"""Begins the line of a log that says what was started, and when."""
_GPUS, _THREADS = "CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS"
_ROOT = str(Path(__file__).resolve().parents[3])
"""Where this package is imported from."""
_PROGRAM = """\
import sys
root = sys.argv[1]
if root not in sys.path:
    sys.path.insert(0, root)
from pipeline.ablation.running.child import end_with_parent
end_with_parent()
from pipeline.cli import main
main(sys.argv[2:], prog_name="pipeline")
"""
"""With ``-P``: nothing is imported from the working directory, unless this package is there."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """One command line to run."""

    name: str
    arguments: tuple[str, ...]
    """Of ``pipeline``."""
    out: Path
    """The directory that it writes."""
    log: Path
    """What it prints is appended here."""


class Started(Protocol):
    """A job that has been started."""

    def exit_code(self) -> int | None:
        """None while it runs; negative for the signal that ended it."""

    def stop(self) -> None:
        """Ask it to save and to end."""

    def kill(self) -> None:
        """End it at once."""


Launch = Callable[[Job, int], Started]
"""Starts a job in a slot, counted from 0, of those that are used at a time."""


@dataclass(frozen=True, kw_only=True)
class Places:
    """Where runs can be trained."""

    launch: Launch
    num_slots: int
    gives_gpus: bool
    """Whether each run is given a GPU, whichever its recipe names."""
    trials: Path | None = None
    """The directory below which trials are made; None: where TMPDIR says."""


def local_places(devices: Sequence[str], num_slots: int) -> Places:
    """This machine, for recipes with these ``devices``."""
    gpus = visible_gpus(devices) if num_slots > 1 else ()
    return Places(
        launch=LocalProcesses(num_slots=num_slots, gpus=gpus),
        num_slots=num_slots,
        gives_gpus=bool(gpus),
    )


@dataclass(frozen=True, kw_only=True)
class LocalProcesses:
    """Processes of this machine. Calling it is a ``Launch``."""

    num_slots: int
    gpus: tuple[str, ...] = ()
    """As CUDA names them; a slot has one of them. Empty: nothing is said of GPUs."""

    def __call__(self, job: Job, slot: int) -> "LocalProcess":
        make_directory(job.log.parent)
        with open(job.log, "ab") as log:
            now = datetime.now().astimezone().isoformat(timespec="seconds")
            begin = "\n" if log.tell() else ""  # the last command may have left half a line
            log.write(f"{begin}{COMMAND_MARK}{now} {join(('pipeline', *job.arguments))}\n".encode())
            log.flush()
            process = subprocess.Popen(
                [sys.executable, "-P", "-c", _PROGRAM, _ROOT, *job.arguments],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=self.environment(slot),
                # A terminal's Ctrl-C goes to the sweep alone, which asks each run once.
                start_new_session=True,
            )
        return LocalProcess(process)

    def environment(self, slot: int) -> dict[str, str]:
        """Of a process in ``slot``: its GPU, and its share of the cores unless that is set."""
        found = dict(os.environ)
        if self.num_slots > 1:
            num_cores = len(os.sched_getaffinity(0))
            found.setdefault(_THREADS, str(max(1, num_cores // self.num_slots)))
            if self.gpus:
                found[_GPUS] = self.gpus[slot % len(self.gpus)]
        return found


class LocalProcess:
    """A process that was started by ``LocalProcesses``."""

    def __init__(self, process: "subprocess.Popen[bytes]") -> None:
        self._process = process

    def exit_code(self) -> int | None:
        """See ``Started``."""
        exit_code = self._process.poll()
        if exit_code is not None:
            self.stop()
        return exit_code

    def stop(self) -> None:
        """See ``Started``; by the end of its standard input (see ``child``)."""
        assert self._process.stdin is not None, "it was started with a pipe"
        self._process.stdin.close()

    def kill(self) -> None:
        """See ``Started``."""
        self._process.kill()


def visible_gpus(devices: Sequence[str]) -> tuple[str, ...]:
    """The GPUs of this machine, if runs on ``devices`` (of recipes) would use any.

    PyTorch is asked in a process of its own: it would keep hundreds of megabytes here.
    """
    if all(device == "cpu" for device in devices):
        return ()
    if (named := os.environ.get(_GPUS)) is not None:
        names = tuple(name.strip() for name in named.split(","))
        return names[: names.index("-1")] if "-1" in names else tuple(filter(None, names))
    program = "import torch; print(torch.cuda.device_count())"
    found = subprocess.run(
        [sys.executable, "-P", "-c", program], capture_output=True, text=True, check=False
    )
    is_count = found.returncode == 0 and found.stdout.strip().isdecimal()
    return tuple(map(str, range(int(found.stdout)))) if is_count else ()
