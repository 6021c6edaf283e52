"""Stage one from top to bottom: corpus → rows → teacher → targets and sketch → cache.

In: the settings, and the place of a cache, new or begun. Out: a cache that holds the budget, or the
whole corpus. A unit is made from the spec and its own documents alone, and counts once its receipt
is there: so this may be killed at any moment and started again, and shared among threads, processes
and machines in any way.
"""

import math
import os
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import closing
from pathlib import Path

import torch

from cache_format.metadata.completeness import is_complete
from cache_format.metadata.manifest import Manifest
from cache_format.metadata.receipt import ShardEntry
from cache_format.writer import CacheWriter
from stages.cache_teacher.config import ALL_UNITS, CacheTeacherConfig, UnitRange
from stages.cache_teacher.corpus.unit_reader import PreparedUnit, UnitReader
from stages.cache_teacher.corpus.units import Corpus, resolve_corpus
from stages.cache_teacher.engine.local_engine import make_units
from stages.cache_teacher.engine.ray_engine import RaySettings, make_units_on_ray
from stages.cache_teacher.engine.ray_worker import RayJob
from stages.cache_teacher.engine.token_budget import TokenBudget
from stages.cache_teacher.engine.unit_maker import Job, UnitMaker
from stages.cache_teacher.engine.unit_queue import UnitQueue
from stages.cache_teacher.reporting.progress import CacheProgress, Progress
from stages.cache_teacher.reporting.split_shares import expectation
from stages.cache_teacher.setup.complete_cache import find_complete_cache
from stages.cache_teacher.setup.open_or_create import CacheOpener
from stages.cache_teacher.setup.reference_check import choose_reference_shard
from stages.cache_teacher.setup.teacher_dtype import with_teacher_dtype
from stages.cache_teacher.teacher.lazy_teacher import LazyTeacher
from stages.cache_teacher.teacher.teacher_files import resolve_teacher
from stages.cache_teacher.worker_share import WorkerShare, device_of_worker
from stages.compute.device import choose_device
from stages.recipe_table import table_toml

_MANIFEST_SECONDS = 60.0  # receipts are what a resume goes by; the manifest may lag behind them

Units = UnitRange | WorkerShare


def cache_teacher(
    config: CacheTeacherConfig,
    out: Path | str,
    *,
    recipe_toml: str | None = None,
    report: Callable[[CacheProgress], None] = lambda _: None,
    units: Units = ALL_UNITS,
    ray: RaySettings | None = None,
) -> Manifest:
    """Fill the cache at ``out`` up to ``config.num_tokens`` positions, keeping what is there.

    ``out`` is a directory or a URL. ``report`` is called at every row and change of phase, from any
    thread. ``recipe_toml`` is kept in the cache as ``recipe.toml``; by default ``config`` as TOML.
    Returns the cache's manifest: its spec, its shards, and whether it is complete.

    >>> from stages.cache_teacher import CacheTeacherConfig, cache_teacher
    >>> config = CacheTeacherConfig(
    ...     teacher="my-teacher",  # a directory, or a Hub id
    ...     teacher_dtype="float32",
    ...     corpus="my-corpus.parquet",
    ...     num_tokens=2_000,
    ...     sequence_length=64,
    ...     documents_per_unit=16,
    ...     validation_every=4,
    ...     compile="off",
    ... )
    >>> manifest = cache_teacher(config, "my-cache")
    >>> manifest.complete
    True
    >>> sum(shard.num_tokens for shard in manifest.shards) >= 2_000
    True

    With a range of ``units``, make those only; without an end, as many as the budget needs if those
    before are like them. With a worker's share, make that; the last worker to end completes the
    cache. With ``ray``, all units are made by that cluster's workers. The cache is complete if the
    units from 0 on hold the budget or the corpus: others are parts, which can be merged.

    Raises ValueError for a teacher, corpus or document that cannot be used, CacheError where
    ``out`` is another cache or no cache, and lets running out of memory through.
    """
    if ray is not None and units != ALL_UNITS:
        raise ValueError("a cluster makes all units: leave out units and worker, or the cluster")
    if recipe_toml is None:
        recipe_toml = table_toml("cache_teacher", config)
    progress = Progress(config.num_tokens, units, report)
    progress.show("resolving")
    device = _device(config, units)
    # A cluster's workers have devices of their own.
    config = with_teacher_dtype(config, out, None if ray else device, progress.say)
    source = resolve_teacher(config)
    with closing(resolve_corpus(config)) as corpus:
        if not corpus.has_unit(0):
            raise ValueError(f"corpus {config.corpus!r}: holds no documents")
        teacher = LazyTeacher(source, device, progress)
        beginning = CacheOpener(config=config, out=out, corpus=corpus, teacher=teacher)
        identity = beginning.identity()
        if not (isinstance(units, UnitRange) and units != ALL_UNITS):
            held = find_complete_cache(out, identity.spec, config.num_tokens, corpus)
            if held is not None:
                return _nothing_to_do(held, config.num_tokens, progress)
        writer, identity = beginning.open(identity)
        finished = writer.finished_units()
        job = Job(
            config=config,
            spec=identity.spec,
            projection=identity.projection,
            teacher=teacher,
            reference_shard=choose_reference_shard(finished.values()),
        )
        filling = _Filling(job, writer, corpus, finished, units, progress)
        if ray is None or filling.is_full():
            filling.make_here(recipe_toml)
        else:
            remote = RayJob(config=config, out=out, reference_shard=job.reference_shard)
            filling.make_on_ray(remote, ray, recipe_toml)
        return filling.close()


class _Filling:
    """The units that a run makes, from the first to the manifest."""

    def __init__(
        self,
        job: Job,
        writer: CacheWriter,
        corpus: Corpus,
        finished: Mapping[int, ShardEntry],
        units: Units,
        progress: Progress,
    ) -> None:
        self._job, self._writer, self._corpus = job, writer, corpus
        self._units, self._progress = units, progress
        self._num_tokens = job.config.num_tokens
        self._reader = UnitReader(corpus, job.teacher.source.document_tokenizer, job.spec)
        self._budget = TokenBudget(self._num_tokens, writer, self._reader.num_tokens)
        self._queue = UnitQueue(units, self._budget, corpus, finished, progress)
        self._taking = threading.Lock()
        self._published = time.monotonic()
        self._has_recipe = False
        self._has_said_shares = False

    def is_full(self) -> bool:
        """Whether no unit is missing."""
        return self._queue.is_empty()

    def make_on_ray(self, job: RayJob, settings: RaySettings, recipe_toml: str) -> None:
        """Make what is missing on a cluster, whose workers load teachers of their own."""
        self._job.teacher.unload()  # principal components may have needed it

        def made(entry: ShardEntry) -> None:
            if not self._has_recipe:  # a worker has agreed with the cache
                self._write_recipe(recipe_toml)
            self._made(entry)

        make_units_on_ray(job, settings, self._queue, self._progress, made)

    def make_here(self, recipe_toml: str) -> None:
        """Make what is missing in threads of this process."""
        with closing(UnitMaker(self._job, self._reader, self._writer, self._progress)) as maker:
            if not self._queue.is_empty():
                maker.load()  # and compare it with the cache, before anything is written
            self._write_recipe(recipe_toml)
            self._writer.write_attachments(lambda directory: maker.load().export(directory))
            if not self._queue.is_empty():
                make_units(maker, lambda: self._next_unit(maker), self._made)

    def close(self) -> Manifest:
        """Publish the manifest; complete if all is there that the budget needs."""
        finished = self._writer.finished_units()
        complete = is_complete(finished, self._num_tokens, self._corpus.has_unit)
        is_worker = isinstance(self._units, WorkerShare)
        has_rows = any(
            entry.num_rows for unit, entry in finished.items() if _is_part(unit, self._units)
        )
        if not has_rows and (complete or not is_worker):  # a worker's share may be empty
            raise ValueError(nothing_made(self._job.config, self._units))
        missing = () if complete or not is_worker else self._missing(finished)
        self._progress.show("corpus ended" if self._queue.has_corpus_ended else "done", missing)
        return self._writer.publish_manifest(self._num_tokens, complete)

    def _write_recipe(self, recipe_toml: str) -> None:
        self._writer.write_recipe(recipe_toml)
        self._has_recipe = True

    def _next_unit(self, maker: UnitMaker) -> PreparedUnit | None:
        """The next unit, read. One thread at a time, so that each is asked for when the sizes of
        those before it are known, and nothing is read in vain."""
        with self._taking:
            unit = self._queue.take()
            if unit is None:
                return None
            prepared = maker.prepare(unit)
            assert prepared is not None, "the queue has no units after the corpus"
            self._note(unit, prepared.num_tokens)
            return prepared

    def _note(self, unit: int, num_tokens: int) -> None:
        """A unit's size is known. The first one tells how the cache will be divided."""
        self._budget.record(unit, num_tokens)
        mean = self._budget.mean_size()
        if mean and not self._has_said_shares:
            self._has_said_shares = True
            num_units = math.ceil(self._num_tokens / mean)
            num_units = min(num_units, max(unit + 1, self._corpus.likely_num_units()))
            self._progress.say(expectation(self._job.spec, num_units, mean))

    def _made(self, entry: ShardEntry) -> None:
        self._note(entry.unit, entry.num_tokens)
        if time.monotonic() - self._published > _MANIFEST_SECONDS:
            self._writer.publish_manifest(self._num_tokens, complete=False)
            self._published = time.monotonic()

    def _missing(self, finished: Mapping[int, ShardEntry]) -> tuple[int, ...]:
        """Needed units that are in other workers' hands, or in nobody's."""
        for unit, entry in finished.items():
            self._budget.record(unit, entry.num_tokens)
        missing = []
        for unit in self._budget.needed_units(ALL_UNITS):
            if not self._corpus.has_unit(unit):
                break
            if unit not in finished:
                missing.append(unit)
        return tuple(missing)


def _device(config: CacheTeacherConfig, units: Units) -> torch.device:
    name = config.device
    if isinstance(units, WorkerShare):
        name = device_of_worker(name, units.worker, torch.cuda.device_count(), os.environ)
    return choose_device(name)


def _nothing_to_do(held: Manifest, num_tokens: int, progress: Progress) -> Manifest:
    for entry in held.shards:
        progress.found_unit(entry)
    progress.show("done" if held.num_tokens >= num_tokens else "corpus ended")
    return held


def _is_part(unit: int, units: Units) -> bool:
    """Whether ``unit`` is one of those that the run was asked for; of a worker, all are."""
    if isinstance(units, WorkerShare):
        return True
    return units.first <= unit and (units.end is None or unit < units.end)


def nothing_made(config: CacheTeacherConfig, units: Units) -> str:
    """What is wrong where no unit has a row."""
    if isinstance(units, UnitRange) and units != ALL_UNITS:
        return (
            f"corpus {config.corpus!r}: none of the units from {units.first} on fills a row of "
            f"{config.sequence_length} tokens: the corpus may have ended before them."
        )
    return (
        f"corpus {config.corpus!r}: no unit fills a row of {config.sequence_length} tokens. "
        "Lower sequence_length, or raise documents_per_unit."
    )
