"""Program of ``test_crash``: write a cache many times, killed at one point each time.

``python -m tests.support.killed_writers DIRECTORY STEP`` writes DIRECTORY/whole undisturbed.
Then, for n = 0, STEP, 2 STEP, … it writes DIRECTORY/n in a forked process that kills itself
(SIGKILL) just before or just after its n-th system call that makes something durable or visible,
and again undisturbed, until a run survives. Prints the number of runs that were killed. It is a
program of its own because only a process without threads may fork.
"""

import os
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow  # noqa: F401  (imported before the forks, which are many)

from tests.support.sample_cache import (
    contents,
    pca_sketch,
    sample_spec,
    top_k_hidden_targets,
    write_sample_cache,
)

SPEC = sample_spec(targets=top_k_hidden_targets(), sketch=pca_sketch())
"""With every file that a cache may have."""
_CALLS = ("fsync", "replace", "link", "rename", "unlink", "mkdir")


def kill_at(moment: int) -> Callable[[], int]:
    """Arrange for SIGKILL around the call number ``moment // 2``: before it if even, else after.

    Returns a function that tells how many such calls there were.
    """
    count = 0

    def killing(real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            nonlocal count
            count += 1
            if 2 * count - 2 == moment:
                os.kill(os.getpid(), signal.SIGKILL)
            try:
                return real(*arguments, **options)
            finally:
                if 2 * count - 1 == moment:
                    os.kill(os.getpid(), signal.SIGKILL)

        return call

    for name in _CALLS:
        setattr(os, name, killing(getattr(os, name)))
    return lambda: count


def _run(action: Callable[[], object]) -> bool:
    """Run ``action`` in a forked process; whether it lived. Any end but SIGKILL is a failure."""
    process = os.fork()
    if process == 0:
        action()
        os._exit(0)
    status = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
    if status not in (0, -signal.SIGKILL):
        raise RuntimeError(f"a writer ended with {status}")
    return status == 0


def _killed_then_finished(path: Path, moment: int) -> bool:
    def killed() -> None:
        kill_at(moment)
        write_sample_cache(path, SPEC)

    lived = _run(killed)
    write_sample_cache(path, SPEC)
    return lived


def main(directory: Path, step: int) -> None:
    """See the top of the file."""
    # Counted all the same. It is slow, and a killed process loses nothing that it has written.
    setattr(os, "fsync", lambda descriptor: None)  # noqa: B010
    write_sample_cache(directory / "whole", SPEC)
    wanted = contents(directory / "whole")
    moment = 0
    while not _killed_then_finished(directory / str(moment), moment):
        found = contents(directory / str(moment))
        if found != wanted:
            raise RuntimeError(f"killed at {moment}: {sorted(found)} instead of {sorted(wanted)}")
        shutil.rmtree(directory / str(moment))
        moment += step
    print(moment // step)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
