"""The worker process of the Ray engine: takes settings, makes units.

In: the settings and the place of a cache that was begun. Out: entries of published units. An engine
of several processes runs one of these for each device.
"""

from dataclasses import dataclass
from functools import partial
from pathlib import Path

from cache_format.metadata.receipt import ShardEntry
from stages.cache_teacher.config import ALL_UNITS, CacheTeacherConfig
from stages.cache_teacher.corpus.corpora import resolve_corpora
from stages.cache_teacher.corpus.unit_reader import UnitReader
from stages.cache_teacher.engine.unit_maker import Job, UnitMaker
from stages.cache_teacher.reporting.device_use import DeviceUse
from stages.cache_teacher.reporting.progress import Progress
from stages.cache_teacher.setup.open_or_create import CacheOpener
from stages.cache_teacher.teacher.lazy_teacher import LazyTeacher
from stages.cache_teacher.teacher.teacher_files import resolve_teacher
from stages.compute.device import choose_device


@dataclass(frozen=True, kw_only=True)
class WorkerJob:
    """All that is sent to where units are made."""

    config: CacheTeacherConfig
    out: Path | str
    reference_shard: ShardEntry | None
    """A finished shard that every teacher is compared with."""


@dataclass(frozen=True, kw_only=True)
class MadeUnit:
    """A unit that was published, and what its maker's device has done so far."""

    entry: ShardEntry
    use: DeviceUse
    peak_operations: float | None


class EngineWorker:
    """Makes units of a cache. Three threads may ``make`` at a time, after one has called ``load``.

    Making one does nothing but remember ``job``, so that what fails is raised by ``load``.
    """

    def __init__(self, job: WorkerJob) -> None:
        self._job = job
        self._progress = Progress(job.config.num_tokens, ALL_UNITS, lambda _: None)
        self._maker: UnitMaker | None = None

    def load(self) -> None:
        """Find teacher and corpus here, compare them with the cache's, load the weights.

        Raises ValueError or CacheError where they are others, or are not here.
        """
        config = self._job.config
        teacher = LazyTeacher(resolve_teacher(config), choose_device(config.device), self._progress)
        corpora = resolve_corpora(config)
        beginning = CacheOpener(config=config, out=self._job.out, corpora=corpora, teacher=teacher)
        writer, identity = beginning.open(beginning.identity())
        job = Job(
            config=config,
            spec=identity.spec,
            shared=identity.shared,
            teacher=teacher,
            reference_shard=self._job.reference_shard,
        )
        reader = UnitReader(corpora, teacher.source, identity.spec)
        self._maker = UnitMaker(job, reader, writer, self._progress)
        loaded = self._maker.load()
        writer.write_attachments(partial(loaded.export, with_weights=config.keep_teacher_weights))

    def make(self, unit: int) -> MadeUnit:
        """Make and publish ``unit``."""
        assert self._maker is not None, "load comes first"
        entry = self._maker.make(unit)
        if entry is None:
            raise ValueError(
                f"{self._job.config.corpus_title}: ends before unit {unit} on a worker, but not "
                "where the run was started. Give every worker the same corpus."
            )
        return MadeUnit(
            entry=entry, use=self._progress.use, peak_operations=self._progress.peak_operations
        )
