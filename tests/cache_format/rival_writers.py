"""Program of ``test_rivals``: processes that write one cache at once, one of them killed.

``python -m tests.cache_format.rival_writers DIRECTORY NUM_PROCESSES NUM_ROUNDS KIND`` makes
DIRECTORY/<round> once for each round: NUM_PROCESSES forked processes start together, each with the
units in an order of its own. In every other round one of them is killed (SIGKILL) at a random
moment; all others must end well, and the cache must then be complete. With KIND "same" all make
the same bytes, as one machine does; with "different" each makes other rows, as another GPU would.
It is a program of its own because only a process without threads may fork.
"""

import os
import random
import shutil
import signal
import sys
import time
from pathlib import Path
from typing import Literal

import pyarrow  # noqa: F401  (imported before the forks, which are many)

import cache_format
from cache_format.writer import CacheWriter
from tests.cache_format.sample_cache import (
    build_teacher,
    contents,
    sample_ranks,
    sample_row,
    sample_spec,
)

NUM_UNITS = 24
SPEC = sample_spec()

Kind = Literal["same", "different"]


def write(path: Path, kind: Kind, seed: int) -> None:
    """Make the whole cache, in an order that depends on ``seed``; "different" rows do too."""
    order = random.Random(seed)
    units = order.sample(range(NUM_UNITS), NUM_UNITS)
    rows_seed = seed if kind == "different" else 0
    writer = CacheWriter.create_or_open(path, SPEC, sample_ranks())
    writer.write_attachments(build_teacher)
    for unit in units:
        rows = [sample_row(1000 * rows_seed + unit, SPEC)]
        writer.write_unit(unit, rows, num_documents=1)
        if order.random() < 0.1:
            writer.publish_manifest(1, complete=False)
    writer.publish_manifest(1, complete=True)


def _start(path: Path, kind: Kind, seed: int, gate: int) -> int:
    process = os.fork()
    if process == 0:
        os.read(gate, 1)  # all wait until the last one is there
        write(path, kind, seed)
        os._exit(0)
    return process


def _race(path: Path, kind: Kind, num_processes: int, kill_after_seconds: float | None) -> bool:
    """Let the processes write; returns whether one was killed."""
    gate, opener = os.pipe()
    processes = [_start(path, kind, 1 + seed, gate) for seed in range(num_processes)]
    os.write(opener, b"." * num_processes)
    if kill_after_seconds is not None:
        time.sleep(kill_after_seconds)
        os.kill(processes[0], signal.SIGKILL)
    ends = [os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) for process in processes]
    os.close(gate)
    os.close(opener)
    if ends[0] not in (0, -signal.SIGKILL) or any(ends[1:]):
        raise RuntimeError(f"{path}: the writers ended with {ends}")
    return ends[0] != 0


def require_units(path: Path) -> None:
    """Raise unless every unit is there, and nothing is wrong but what the dead left."""
    cache = cache_format.open(path)
    if [entry.unit for entry in cache.manifest.shards] != list(range(NUM_UNITS)):
        raise RuntimeError(f"{path}: units {[entry.unit for entry in cache.manifest.shards]}")
    for problem in cache.verify():
        if problem.is_damage:
            raise RuntimeError(problem.message)


def require_whole(path: Path) -> None:
    """Raise unless the cache has every unit once, nothing else, and the right manifest."""
    require_units(path)
    manifest = cache_format.open(path).manifest
    shards = sorted(file.name for file in (path / "shards").iterdir())
    receipts = sorted(file.name for file in (path / "receipts").iterdir())
    if shards != [Path(entry.file).name for entry in manifest.shards]:
        raise RuntimeError(f"{path}: shards {shards}")
    if receipts != [*(f"{unit:05d}.json" for unit in range(NUM_UNITS)), "teacher.json"]:
        raise RuntimeError(f"{path}: receipts {receipts}")
    if problems := cache_format.open(path).verify():
        raise RuntimeError(f"{path}: {problems}")
    if (
        CacheWriter.create_or_open(path, SPEC, sample_ranks()).publish_manifest(1, complete=True)
        != manifest
    ):
        raise RuntimeError(f"{path}: the manifest was not that of the receipts")


def main(directory: Path, num_processes: int, num_rounds: int, kind: Kind) -> None:
    """See the top of the file. Prints how many processes were killed."""
    # Slow, and a killed process loses nothing that it has written.
    setattr(os, "fsync", lambda descriptor: None)  # noqa: B010
    write(directory / "whole", kind, 0)
    started = time.monotonic()
    write(directory / "timed", kind, 0)
    seconds = (time.monotonic() - started) * num_processes
    moments = random.Random(0)
    num_killed = 0
    for number in range(num_rounds):
        path = directory / str(number)
        kill_after = moments.uniform(0, seconds) if number % 2 else None
        if _race(path, kind, num_processes, kill_after):
            num_killed += 1
            require_units(path)
            write(path, kind, 99)  # removes what the killed one left half-written
        require_whole(path)
        if kind == "same" and contents(path) != contents(directory / "whole"):
            raise RuntimeError(f"{path}: not what a single process makes")
        shutil.rmtree(path)
    print(num_killed)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), sys.argv[4])  # type: ignore[arg-type]
