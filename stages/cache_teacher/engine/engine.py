"""What an engine is: makes the units of a cache somewhere else than in this process."""

from collections.abc import Callable
from typing import Protocol

from cache_format.metadata.receipt import ShardEntry
from stages.cache_teacher.engine.unit_queue import UnitQueue
from stages.cache_teacher.engine.worker import WorkerJob
from stages.cache_teacher.reporting.progress import Progress


class Engine(Protocol):
    """Runs an ``EngineWorker`` for each of its devices, and gives them units."""

    def make_units(
        self,
        job: WorkerJob,
        queue: UnitQueue,
        progress: Progress,
        made: Callable[[ShardEntry], None],
    ) -> None:
        """Make what ``queue`` gives, as ``job`` says; tell ``made`` of each.

        Raises ValueError where the engine cannot start or a unit cannot be made.
        """
