"""Jobs of a sweep in forks of a process that has imported all they need: a start takes no seconds.

They do the same as ``LocalProcesses``, but for what concerns processes alone.
"""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.context import ForkServerContext
from multiprocessing.process import BaseProcess

import pytest

from pipeline.ablation.running.processes import COMMAND_MARK, Job, LocalProcesses, Started


class ForkedJob:
    """One that has been started."""

    def __init__(self, process: BaseProcess) -> None:
        self._process = process

    def exit_code(self) -> int | None:
        return self._process.exitcode

    def stop(self) -> None:
        self._process.terminate()

    def kill(self) -> None:
        self._process.kill()


@contextmanager
def forked_jobs(server: ForkServerContext) -> Iterator[None]:
    """A block in which sweeps of this process fork their jobs."""

    def launch(_: LocalProcesses, job: Job, slot: int) -> Started:
        job.log.parent.mkdir(parents=True, exist_ok=True)
        process = server.Process(target=_run, args=(job.arguments, str(job.log)))
        process.start()
        return ForkedJob(process)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(LocalProcesses, "__call__", launch)
        yield


def _run(arguments: tuple[str, ...], log: str) -> None:
    import torch

    from pipeline.cli import main

    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(descriptor, sys.stdout.fileno())
    os.dup2(descriptor, sys.stderr.fileno())
    print(f"{COMMAND_MARK}{arguments}", flush=True)
    torch.set_num_threads(1)
    main(list(arguments), prog_name="pipeline")
