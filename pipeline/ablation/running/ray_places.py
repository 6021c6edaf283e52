"""A Ray cluster as a place for the runs of a sweep: how many have room, and what each of them gets.

In: what the recipes need and what all machines have to reach. Out: ``Places``. Every machine that
may get a run is asked first whether it reaches the sweep's directory; one that joins later is
asked when it gets its first run.
"""

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from cache_format.errors import AdvisedError
from cache_format.storage.atomic import TEMPORARY_PREFIX, lock_unless_held, locked
from pipeline.ablation.running.processes import Job, Places
from pipeline.ablation.running.ray_jobs import RayJobs
from pipeline.ablation.running.ray_worker import MARKER, require_reached
from stages.ray_cluster import num_workers_with_room, ray_cluster

_SECONDS_TO_ANSWER = 120.0
_SHARED = f"{TEMPORARY_PREFIX}ablate-"


@contextmanager
def ray_places(
    devices: Sequence[str],
    num_workers: int | None,
    address: str | None,
    out: Path,
    inputs: Sequence[Path],
    say: Callable[[Job, str], None],
) -> Iterator[Places]:
    """The cluster at ``address`` for runs on ``devices`` (of recipes), ``num_workers`` at a time.

    ``out`` and ``inputs`` are absolute paths. Raises ValueError where Ray is not installed, the
    cluster cannot be reached or has no room for so many, or a machine does not reach them.
    """
    with ray_cluster(address) as ray, shared_directory(out) as shared:
        marker = shared / f"{MARKER}here"
        marker.touch()  # and no file stays open: NFS keeps one that is removed, and its directory
        needed = {out: marker, **{path: path for path in inputs}}
        uses_gpus = any(device != "cpu" for device in devices)
        has_gpus = uses_gpus and ray.cluster_resources().get("GPU", 0) >= 1
        nodes = ray.nodes()
        num_runs = min(num_workers_with_room(nodes, has_gpus, num_workers), len(devices))
        num_cpus = cpus_of_a_run([_resources(node) for node in nodes], has_gpus, num_runs)
        _require_reached_by_all(ray, nodes, num_cpus, has_gpus, needed)
        launch = RayJobs(
            ray=ray,
            num_cpus=num_cpus,
            num_gpus=int(has_gpus),
            num_threads=os.environ.get("OMP_NUM_THREADS", str(num_cpus)),
            needed=needed,
            say=say,
        )
        yield Places(launch=launch, num_slots=num_runs, gives_gpus=has_gpus, trials=shared)


def cpus_of_a_run(machines: Sequence[Mapping[str, float]], has_gpus: bool, num_runs: int) -> int:
    """The processors of each of ``num_runs`` that are trained at a time on ``machines``.

    With GPUs, those that each GPU has in all machines. Otherwise as many as can be.
    """
    if has_gpus:
        shares = [
            int(machine.get("CPU", 0) // machine["GPU"])
            for machine in machines
            if machine.get("GPU", 0) >= 1
        ]
        return max(1, min(shares))
    cpus = [int(machine.get("CPU", 0)) for machine in machines]
    fitting = (
        share
        for share in range(max(cpus), 1, -1)
        if sum(each // share for each in cpus) >= num_runs
    )
    return next(fitting, 1)


@contextmanager
def shared_directory(out: Path) -> Iterator[Path]:
    """A temporary one in ``out``, or where ``out`` will be: readers of sweeps pass over it."""
    below = next(path for path in (out, *out.parents) if path.is_dir())
    for left in below.glob(f"{_SHARED}*"):  # by a sweep that was killed, unless its lock is held
        with suppress(OSError), lock_unless_held(left) as is_ours:
            if is_ours:
                shutil.rmtree(left, ignore_errors=True)
    with (
        tempfile.TemporaryDirectory(prefix=_SHARED, dir=below, ignore_cleanup_errors=True) as name,
        locked(Path(name)),
    ):
        yield Path(name)


def _resources(node: Mapping[str, Any]) -> Mapping[str, float]:
    """None of a machine that is gone."""
    return node["Resources"] if node["Alive"] else {}


def _require_reached_by_all(
    ray: Any,
    nodes: Sequence[Mapping[str, Any]],
    num_cpus: int,
    has_gpus: bool,
    needed: Mapping[Path, Path],
) -> None:
    """Raise what ``require_reached`` raises on the first machine that may get a run."""
    calls = []
    for node in nodes:
        resources = _resources(node)
        if resources.get("CPU", 0) >= num_cpus and resources.get("GPU", 0) >= int(has_gpus):
            there = ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy(
                node["NodeID"], soft=False
            )
            ask = ray.remote(num_cpus=0, max_retries=0, scheduling_strategy=there)(require_reached)
            calls.append(ask.remote(needed))
    # One that is too busy to answer, or gone meanwhile, is asked again when it gets a run.
    answered, _ = ray.wait(calls, num_returns=len(calls), timeout=_SECONDS_TO_ANSWER)
    for call in answered:
        try:
            ray.get(call)
        except ray.exceptions.RayTaskError as error:
            raise _refusal(error) from error
        except ray.exceptions.RayError:
            continue


def _refusal(error: Any) -> ValueError:
    """What keeps a machine from running anything; mostly, this program is not installed there."""
    if isinstance(error.cause, ValueError):
        return error.cause
    lines = [line.strip() for line in str(error.cause).splitlines() if line.strip()]
    return AdvisedError(
        f"a machine of the Ray cluster cannot run this program: {lines[-1] if lines else error}.",
        "Install the version of xlstm-distill that is installed here on every machine, for the "
        "Python that Ray uses there.",
    )
