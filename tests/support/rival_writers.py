"""Program of ``test_rivals``: processes that write one cache at once, one of them killed.

``python -m tests.support.rival_writers DIRECTORY NUM_PROCESSES NUM_ROUNDS KIND`` makes
DIRECTORY/<round> once for each round: NUM_PROCESSES forked processes start together, each with the
units in an order of its own. In every other round one of them kills itself (SIGKILL) at a random
one of the calls that change the disk; all others must end well, and the cache must then be
complete. With KIND "same" all make the same bytes, as one machine does; with "different" each makes
other rows, as another GPU would. It is a program of its own because only a process without threads
may fork.
"""

import os
import random
import shutil
import signal
import sys
from pathlib import Path
from typing import Literal

import pyarrow  # noqa: F401  (imported before the forks, which are many)

import cache_format
from cache_format.tools.verify import verify
from cache_format.writer import CacheWriter
from tests.support.killed_writers import kill_at
from tests.support.sample_cache import (
    build_teacher,
    contents,
    hidden_targets,
    pca_sketch,
    sample_row,
    sample_shared,
    sample_spec,
)

NUM_UNITS = 24
SPEC = sample_spec(targets=hidden_targets(), sketch=pca_sketch())
"""With all the files that shards share."""

_NUM_MOMENTS = 400
"""Twice the calls that change the disk, of a process that makes all units alone; about that."""

Kind = Literal["same", "different"]


def write(path: Path, kind: Kind, seed: int) -> None:
    """Make the whole cache, in an order that depends on ``seed``; "different" rows do too."""
    order = random.Random(seed)
    units = order.sample(range(NUM_UNITS), NUM_UNITS)
    rows_seed = seed if kind == "different" else 0
    writer = CacheWriter.create_or_open(path, SPEC, sample_shared(SPEC))
    writer.write_attachments(build_teacher)
    for unit in units:
        rows = [sample_row(1000 * rows_seed + unit, SPEC)]
        writer.write_unit(unit, rows, num_documents=1)
        if order.random() < 0.1:
            writer.publish_manifest(1, complete=False)
    writer.publish_manifest(1, complete=True)


def _start(path: Path, kind: Kind, seed: int, gate: int, moment: int | None) -> int:
    process = os.fork()
    if process == 0:
        os.read(gate, 1)  # all wait until the last one is there
        if moment is not None:
            kill_at(moment)
        write(path, kind, seed)
        os._exit(0)
    return process


def _race(path: Path, kind: Kind, num_processes: int, moment: int | None) -> bool:
    """Let the processes write, the first until ``moment``; returns whether it was killed."""
    gate, opener = os.pipe()
    moments = [moment, *[None] * (num_processes - 1)]
    processes = [_start(path, kind, 1 + seed, gate, at) for seed, at in enumerate(moments)]
    os.write(opener, b"." * num_processes)
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
    for problem in verify(cache):
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
    if problems := verify(cache_format.open(path)):
        raise RuntimeError(f"{path}: {problems}")
    if (
        CacheWriter.create_or_open(path, SPEC, sample_shared(SPEC)).publish_manifest(
            1, complete=True
        )
        != manifest
    ):
        raise RuntimeError(f"{path}: the manifest was not that of the receipts")


def main(directory: Path, num_processes: int, num_rounds: int, kind: Kind) -> None:
    """See the top of the file. Prints how many processes were killed."""
    # Slow, and a killed process loses nothing that it has written.
    setattr(os, "fsync", lambda descriptor: None)  # noqa: B010
    write(directory / "whole", kind, 0)
    moments = random.Random(0)
    num_killed = 0
    for number in range(num_rounds):
        path = directory / str(number)
        moment = moments.randrange(_NUM_MOMENTS) if number % 2 else None
        killed = _race(path, kind, num_processes, moment)
        while moment is not None and not killed:  # the others had left it too little to do
            shutil.rmtree(path)
            moment //= 2
            killed = _race(path, kind, num_processes, moment)
        if killed:
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
