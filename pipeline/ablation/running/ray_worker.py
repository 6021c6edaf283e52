"""What a Ray cluster's machine does for a sweep: it trains one run, as a process of its own.

In: a job, and what the machine has to reach. Out: the process's exit code. The actor only waits for
its process, which notices by its standard input when the actor dies (see ``child``). Imports no
PyTorch.
"""

import os
import socket
import threading
from collections.abc import Mapping
from pathlib import Path

from cache_format.errors import AdvisedError
from pipeline.ablation.running.processes import Job, LocalProcesses
from pipeline.run_report.recorded.recorded_run import is_held, read_run

_SECONDS_BETWEEN_LOOKS = 0.2
_RUN_FILE = "run.json"
MARKER = "seen-"
"""Begins the name of a file by which the sweep's directory is known to be the same one."""
STOPPED = 143
"""The exit code of a run that was asked to end, as of one that SIGTERM has ended."""


class RunWorker:
    """An actor of which ``run`` is called once, and the rest from another thread meanwhile."""

    def __init__(self, num_threads: str) -> None:
        """``num_threads`` as OpenMP has it."""
        os.environ["OMP_NUM_THREADS"] = num_threads
        self._stop, self._kill = threading.Event(), threading.Event()

    def ready(self) -> None:
        """Return, which tells that the cluster has found room for the actor."""

    def run(self, job: Job, needed: Mapping[Path, Path]) -> int:
        """Train, unless that has been done. Raises ValueError where ``needed`` is not reached."""
        require_reached(needed)
        # The process of an actor that died may be saving its last step.
        while job.out.is_dir() and is_held(job.out):
            if self._stop.wait(_SECONDS_BETWEEN_LOOKS):
                return STOPPED
        if (job.out / _RUN_FILE).is_file() and read_run(job.out, job.name).state == "finished":
            return 0
        if self._stop.is_set():
            return STOPPED
        process = LocalProcesses(num_slots=1)(job, 0)
        while (exit_code := process.exit_code()) is None:
            if self._kill.is_set():
                process.kill()
            if self._stop.is_set():
                process.stop()
                self._kill.wait(_SECONDS_BETWEEN_LOOKS)
            else:
                self._stop.wait(_SECONDS_BETWEEN_LOOKS)
        return exit_code

    def stop(self) -> None:
        """Ask the run to save and to end."""
        self._stop.set()

    def kill(self) -> None:
        """End the run at once."""
        self._kill.set()
        self._stop.set()


def require_reached(needed: Mapping[Path, Path]) -> None:
    """Raise ValueError where this machine does not reach one of ``needed``: what it is called, and
    the path by which it is looked for."""
    absent = [str(name) for name, path in needed.items() if not path.exists()]
    if absent:
        raise AdvisedError(
            f"{socket.gethostname()}, a machine of the Ray cluster, does not reach "
            f"{' and '.join(absent)} as it is on the machine of the sweep.",
            "Put the sweep, the cache and the weights it begins from on storage that all machines "
            "have mounted at the same path.",
        )
    for name, path in needed.items():
        if path.name.startswith(MARKER) and not os.access(path.parent, os.W_OK):
            raise AdvisedError(
                f"{socket.gethostname()}, a machine of the Ray cluster, cannot write to {name}.",
                "Mount it there so that it can be written to, by the user of the cluster.",
            )
