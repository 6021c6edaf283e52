"""Stage one from top to bottom: corpus → rows → teacher → targets and sketch → cache.

Input: the settings, and the location of a new or unfinished cache. Output: a cache that holds the
token budget, or the whole corpus. A unit depends only on the spec and its own documents, and is
finished once its receipt exists: so this can be killed and restarted at any moment, and distributed
over threads, processes and machines in any way.
"""

import os
from collections.abc import Callable
from pathlib import Path

import torch

from cache_format.metadata.manifest import Manifest
from stages.cache_teacher.config import ALL_UNITS, CacheTeacherConfig, UnitRange
from stages.cache_teacher.corpus.corpora import open_corpora
from stages.cache_teacher.engine.engine import Engine
from stages.cache_teacher.engine.filling import Filling, Units
from stages.cache_teacher.engine.unit_maker import Job
from stages.cache_teacher.reporting.progress import CacheProgress, Progress
from stages.cache_teacher.setup.complete_cache import find_complete_cache
from stages.cache_teacher.setup.open_or_create import CacheOpener
from stages.cache_teacher.setup.reference_check import choose_reference_shard
from stages.cache_teacher.setup.teacher_dtype import with_teacher_dtype
from stages.cache_teacher.teacher.lazy_teacher import LazyTeacher
from stages.cache_teacher.teacher.teacher_files import resolve_teacher
from stages.cache_teacher.worker_share import WorkerShare, device_of_worker
from stages.compute.device import choose_device
from stages.recipe_table import table_toml


def cache_teacher(
    config: CacheTeacherConfig,
    out: Path | str,
    *,
    recipe_toml: str | None = None,
    report: Callable[[CacheProgress], None] = lambda _: None,
    units: Units = ALL_UNITS,
    engine: Engine | None = None,
) -> Manifest:
    """Fill the cache at ``out`` up to ``config.num_tokens`` positions; finished units are kept.

    ``out`` is a directory or a URL. ``report`` is called for every row and change of phase, from
    any thread. ``recipe_toml`` is stored in the cache as ``recipe.toml``; the default is ``config``
    as TOML. Returns the cache's manifest: its spec, its shards, and whether it is complete.

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

    If ``units`` is a range, only these units are made; if it has no end, as many as the budget is
    estimated to need, assuming that earlier units are of the same size. If it is a worker's share,
    only that is made; the last worker to finish completes the cache. With ``engine``, all units are
    made by the cluster's workers. The cache is complete if the units from 0 on hold the budget or
    the corpus; otherwise it is a part, which can be merged.

    Raises ValueError for a teacher, corpus or document that cannot be used, and CacheError if
    ``out`` is another cache or not a cache. Propagates out-of-memory errors.
    """
    if engine is not None and units != ALL_UNITS:
        raise ValueError("a cluster makes all units: leave out units and worker, or the cluster")
    recipe_toml = table_toml("cache_teacher", config) if recipe_toml is None else recipe_toml
    progress = Progress(config.num_tokens, units, report)
    progress.show("resolving")
    device = _device(config, units)
    # A cluster's workers have devices of their own.
    config = with_teacher_dtype(config, out, None if engine else device, progress.say)
    teacher = LazyTeacher(resolve_teacher(config), device, progress)
    with open_corpora(config) as corpora:
        opener = CacheOpener(config=config, out=out, corpora=corpora, teacher=teacher)
        identity = opener.identity()
        if not _is_part(units):
            has_unit = corpora.in_order(identity.spec).has_unit
            complete = find_complete_cache(out, identity.spec, config.num_tokens, has_unit)
            if complete is not None:
                return _nothing_to_do(complete, config.num_tokens, progress)
        writer, identity = opener.open(identity)
        finished = writer.finished_units()
        job = Job(
            config=config,
            spec=identity.spec,
            shared=identity.shared,
            teacher=teacher,
            reference_shard=choose_reference_shard(finished.values()),
        )
        filling = Filling(job, writer, corpora, finished, units, progress)
        if engine is None or filling.is_full():
            filling.make_here(recipe_toml)
        else:
            filling.make_elsewhere(engine, out, recipe_toml)
        return filling.close()


def _is_part(units: Units) -> bool:
    """Whether only a part of the cache is asked for, which a complete cache does not answer."""
    return isinstance(units, UnitRange) and units != ALL_UNITS


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
