"""The engine of many machines: Ray actors that hold a teacher each, and get units one by one.

In: a queue of units, and where actors find settings and cache. Out: every unit made, or the first
failure that making it again would not mend. Whoever is fast gets more units. An
actor that dies (a spot machine taken back, memory run out) is replaced, and what it had not
finished is made by others; nothing is lost but time, and it does not matter if it was finished
after all. The packages of this program have to be installed on every machine; the weights, a local
corpus and a local cache are looked for in the same places.
"""

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from heapq import heappop, heappush
from typing import Any

from cache_format.metadata.receipt import ShardEntry
from stages.cache_teacher.engine.unit_maker import UNITS_IN_FLIGHT
from stages.cache_teacher.engine.unit_queue import UnitQueue
from stages.cache_teacher.engine.worker import EngineWorker, MadeUnit, WorkerJob
from stages.cache_teacher.reporting.device_use import DeviceUse
from stages.cache_teacher.reporting.progress import Progress
from stages.ray_cluster import num_workers_with_room, ray_cluster

_TRIES_PER_UNIT = 5
_DEATHS_IN_A_ROW = 5
"""So many workers for each that is wanted may die between two units that are made."""
_WAIT_SECONDS = 1.0


@dataclass(frozen=True, kw_only=True)
class RayEngine:
    """A Ray cluster: which, and how much of it."""

    num_workers: int | None = None
    """Actors, each with a teacher; by default one for each GPU that has a processor beside it, or
    one."""
    address: str | None = None
    """Of a running cluster; by default $RAY_ADDRESS, or one that is started for this run."""

    def __post_init__(self) -> None:
        if self.num_workers is not None and self.num_workers < 1:
            raise ValueError(f"ray_workers: must be 1 or more, found {self.num_workers}")

    def make_units(
        self,
        job: WorkerJob,
        queue: UnitQueue,
        progress: Progress,
        made: Callable[[ShardEntry], None],
    ) -> None:
        """See ``Engine.make_units``.

        Raises ValueError where Ray is not installed, the cluster cannot be reached or has no room
        for so many workers, what a unit raised if it is a ValueError, and RuntimeError with the
        last cause where units or workers keep failing. Then, and after Ctrl-C, all workers are
        killed: only whole shards are there.
        """
        progress.show("waiting for workers")
        with ray_cluster(self.address) as ray:
            pool = ActorPool(ray, job, self.num_workers, queue, progress, made)
            try:
                pool.work()
            finally:
                pool.shutdown()


@dataclass(eq=False)
class _Worker:
    """An actor, and what it was told to do."""

    handle: Any
    loading: Any
    """The call of ``load`` until it has ended, then None."""
    units: dict[Any, int] = field(default_factory=dict)
    """The unit of each call that has not ended."""
    use: DeviceUse = field(default_factory=DeviceUse)

    def calls(self) -> list[Any]:
        return list(self.units) if self.loading is None else [self.loading]


class ActorPool:
    """The actors of a run."""

    def __init__(
        self,
        ray: Any,
        job: WorkerJob,
        num_workers: int | None,
        queue: UnitQueue,
        progress: Progress,
        made: Callable[[ShardEntry], None],
    ) -> None:
        self._ray, self._queue, self._progress, self._made = ray, queue, progress, made
        has_gpus = ray.cluster_resources().get("GPU", 0) >= 1
        self._num_workers = num_workers_with_room(ray.nodes(), has_gpus, num_workers)
        self._job = ray.put(job)
        self._actor = ray.remote(
            num_cpus=1,
            num_gpus=1 if has_gpus else 0,
            max_concurrency=UNITS_IN_FLIGHT,
            max_restarts=0,
            max_task_retries=0,
        )(EngineWorker)
        self._workers: list[_Worker] = []
        self._again: list[int] = []
        self._num_tries: dict[int, int] = {}
        self._num_deaths = 0

    def work(self) -> None:
        """Make all units of the queue."""
        while not self._is_done():
            while len(self._workers) < self._num_workers:
                self._spawn()
            self._hand_out()
            # Those that are loading first: they would have to wait while others never do.
            workers = sorted(self._workers, key=lambda worker: worker.loading is None)
            calls = [call for worker in workers for call in worker.calls()]
            ended, _ = self._ray.wait(calls, num_returns=1, timeout=_WAIT_SECONDS)
            for call in ended:
                self._take_in(call)

    def shutdown(self) -> None:
        """Kill the actors; they have nothing to do, or what they do is not wanted."""
        for worker in self._workers:
            self._ray.kill(worker.handle, no_restart=True)

    def _is_done(self) -> bool:
        is_busy = any(worker.units for worker in self._workers)
        return not is_busy and not self._again and self._queue.is_empty()

    def _spawn(self) -> None:
        handle = self._actor.remote(self._job)
        self._workers.append(_Worker(handle, handle.load.remote()))

    def _hand_out(self) -> None:
        """Give units to those that have fewest, until all have enough."""
        ready = [worker for worker in self._workers if worker.loading is None]
        while ready:
            worker = min(ready, key=lambda worker: len(worker.units))
            if len(worker.units) >= UNITS_IN_FLIGHT:
                return
            unit = heappop(self._again) if self._again else self._queue.take()
            if unit is None:
                return
            worker.units[worker.handle.make.remote(unit)] = unit

    def _take_in(self, call: Any) -> None:
        """What came of a call."""
        worker = next((worker for worker in self._workers if call in worker.calls()), None)
        if worker is None:
            return  # of an actor that was given up
        try:
            result = self._ray.get(call)
        except self._ray.exceptions.RayError as error:
            self._on_failure(worker, call, error)
            return
        if call == worker.loading:
            worker.loading = None
            self._progress.show("caching")
            return
        del worker.units[call]
        self._num_deaths = 0
        self._tell(worker, result)

    def _tell(self, worker: _Worker, result: MadeUnit) -> None:
        self._progress.know_device(result.peak_operations, self._num_workers)
        # Its threads may end in another order than that in which they have counted.
        if result.use.busy_seconds > worker.use.busy_seconds:
            self._progress.used(result.use - worker.use)
            worker.use = result.use
        self._progress.begin_unit(result.entry.unit, result.entry.corpus_position)
        self._progress.made_unit(result.entry)
        self._made(result.entry)

    def _on_failure(self, worker: _Worker, call: Any, error: Exception) -> None:
        """Replace an actor, and make its units again; raise what would only happen again."""
        cause = getattr(error, "cause", None) or error
        if isinstance(cause, ValueError):
            raise cause from error
        self._workers.remove(worker)
        with suppress(Exception):  # it may be dead already
            self._ray.kill(worker.handle, no_restart=True)
        self._num_deaths += 1
        if self._num_deaths > _DEATHS_IN_A_ROW * self._num_workers:
            raise RuntimeError(
                f"{self._num_deaths} workers have died in a row. The last one: {cause}"
            ) from error
        for unit in worker.units.values():
            self._num_tries[unit] = self._num_tries.get(unit, 0) + 1
            if self._num_tries[unit] >= _TRIES_PER_UNIT:
                raise RuntimeError(
                    f"unit {unit}: {_TRIES_PER_UNIT} workers have failed on it. The last one: "
                    f"{cause}"
                ) from error
            heappush(self._again, unit)
