"""A Ray cluster of this machine, and the processes of its actors."""

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.support import ROOT


@contextmanager
def local_cluster(num_cpus: int) -> Iterator[None]:
    """A cluster that believes in so many processors; its workers import what is on this path."""
    import ray

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(ROOT))
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
        ray.init(
            num_cpus=num_cpus,
            include_dashboard=False,
            log_to_driver=False,
            logging_level=logging.ERROR,
        )
        yield
        ray.shutdown()


def workers(kind: str) -> list[int]:
    """Process ids of this process's actors of the class ``kind``."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            command = (path / "cmdline").read_bytes()
        except OSError:
            continue
        if command.startswith(b"ray::" + kind.encode()) and os.getpid() in ancestors(
            int(path.name)
        ):
            found.append(int(path.name))
    return sorted(found)


def ancestors(process: int) -> Iterator[int]:
    """Process ids of those that have started ``process``."""
    while process > 1:
        try:
            stat = Path(f"/proc/{process}/stat").read_text()
        except OSError:
            return
        process = int(stat.rpartition(")")[2].split()[1])
        yield process
