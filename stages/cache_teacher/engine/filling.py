"""The units that a run of stage one makes: here or on a cluster, from the first to the manifest."""

import math
import threading
import time
from collections.abc import Iterable, Mapping
from contextlib import closing
from itertools import count
from pathlib import Path

from cache_format.metadata.completeness import is_complete
from cache_format.metadata.manifest import Manifest
from cache_format.metadata.receipt import ShardEntry
from cache_format.writer import CacheWriter
from stages.cache_teacher.config import ALL_UNITS, CacheTeacherConfig, UnitRange
from stages.cache_teacher.corpus.corpora import Corpora
from stages.cache_teacher.corpus.unit_reader import PreparedUnit, UnitReader
from stages.cache_teacher.engine.engine import Engine
from stages.cache_teacher.engine.local_engine import make_units
from stages.cache_teacher.engine.token_budget import TokenBudget
from stages.cache_teacher.engine.unit_maker import Job, UnitMaker
from stages.cache_teacher.engine.unit_queue import UnitQueue
from stages.cache_teacher.engine.worker import WorkerJob
from stages.cache_teacher.reporting.progress import Progress
from stages.cache_teacher.reporting.split_shares import expectation
from stages.cache_teacher.worker_share import WorkerShare

_MANIFEST_SECONDS = 60.0  # receipts are what a resume goes by; the manifest may lag behind them

Units = UnitRange | WorkerShare


class Filling:
    """The units that a run makes, from the first to the manifest."""

    def __init__(
        self,
        job: Job,
        writer: CacheWriter,
        corpora: Corpora,
        finished: Mapping[int, ShardEntry],
        units: Units,
        progress: Progress,
    ) -> None:
        self._job, self._writer = job, writer
        self._units, self._progress = units, progress
        self._num_tokens = job.config.num_tokens
        self._reader = UnitReader(corpora, job.teacher.source, job.spec)
        self._corpus = self._reader.units
        self._budget = TokenBudget(self._num_tokens, writer, self._reader.num_tokens)
        self._queue = UnitQueue(units, self._budget, self._corpus, finished, progress)
        self._taking = threading.Lock()
        self._published = time.monotonic()
        self._has_recipe = False
        self._has_said_shares = False

    def is_full(self) -> bool:
        """Whether no unit is missing."""
        return self._queue.is_empty()

    def make_elsewhere(self, engine: Engine, out: Path | str, recipe_toml: str) -> None:
        """Make what is missing by ``engine``, whose workers load teachers of their own and open the
        cache at ``out``."""
        config, reference_shard = self._job.config, self._job.reference_shard
        job = WorkerJob(config=config, out=out, reference_shard=reference_shard)
        self._job.teacher.unload()  # principal components may have needed it

        def made(entry: ShardEntry) -> None:
            if not self._has_recipe:  # a worker has agreed with the cache
                self._write_recipe(recipe_toml)
            self._made(entry)

        engine.make_units(job, self._queue, self._progress, made)

    def make_here(self, recipe_toml: str) -> None:
        """Make what is missing in threads of this process."""
        with closing(UnitMaker(self._job, self._reader, self._writer, self._progress)) as maker:
            if not self._queue.is_empty():
                maker.load()  # and compare it with the cache, before anything is written
            self._write_recipe(recipe_toml)
            with_weights = self._job.config.keep_teacher_weights
            self._writer.write_attachments(
                lambda directory: maker.load().export(directory, with_weights=with_weights)
            )
            if not self._queue.is_empty():
                make_units(maker, lambda: self._next_unit(maker), self._made)

    def close(self) -> Manifest:
        """Publish the manifest; complete if all is there that the budget needs."""
        finished = self._writer.finished_units()
        complete = is_complete(finished, self._num_tokens, self._corpus.has_unit)
        is_worker = isinstance(self._units, WorkerShare)
        has_targets = any(
            entry.statistics.num_scored
            for unit, entry in finished.items()
            if _is_asked_for(unit, self._units)
        )
        if not has_targets and (complete or not is_worker):  # a worker's share may be empty
            raise ValueError(
                nothing_learned(self._job.config, finished.values())
                or nothing_made(self._job.config, self._units)
            )
        missing = () if complete or not is_worker else self._missing(finished)
        if complete and (sentence := self._which_ended(finished)):
            self._progress.say(sentence)
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

    def _which_ended(self, finished: Mapping[int, ShardEntry]) -> str:
        """Which of several corpora has ended before the budget, and how much there was of it; empty
        where none has."""
        num_held = sum(entry.num_tokens for entry in finished.values())
        if num_held >= self._num_tokens or self._job.spec.corpora is None:
            return ""  # and no file is opened that was not needed
        first_missing = next(unit for unit in count() if unit not in finished)
        ended = self._corpus.ended_before(first_missing)
        if ended is None:
            return ""
        name, num_units = ended
        own = [entry.num_tokens for entry in finished.values() if entry.corpus == name]
        units = "1 unit" if num_units == 1 else f"{num_units:,} units"
        return (
            f"corpus {name} has ended after {units} with {sum(own):,} tokens, and with "
            f"it the cache: it holds {num_held:,} of {self._num_tokens:,} tokens. For more, give "
            f"another cache more documents of {name}, or less weight to it"
        )

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


def _is_asked_for(unit: int, units: Units) -> bool:
    """Whether ``unit`` is one of those that the run was asked for; of a worker, all are."""
    if isinstance(units, WorkerShare):
        return True
    return units.first <= unit and (units.end is None or unit < units.end)


def nothing_learned(config: CacheTeacherConfig, entries: Iterable[ShardEntry]) -> str | None:
    """What is wrong where there were conversations, but none has a scored position or fits."""
    of_chat = [entry for entry in entries if entry.conversations is not None]
    counts = [entry.conversations for entry in of_chat if entry.conversations is not None]
    num_skipped = sum(entry.num_skipped_documents for entry in of_chat)
    num_unscored = sum(count.num_unscored for count in counts)
    num_too_long = sum(count.num_too_long for count in counts)
    if num_unscored + num_too_long + num_skipped == 0:
        return None
    of_chat_settings = [each for each in config.each_corpus.values() if each.chat is not None]
    train_on = " or ".join(sorted({repr(each.train_on) for each in of_chat_settings}))
    return (
        f"{config.corpus_title}: no position is scored. Of its conversations, {num_unscored:,} "
        f"have none with train_on = {train_on}, and {num_too_long:,} do not fit in a row of "
        f"{config.sequence_length} tokens. Look at the roles of the messages, or set train_on "
        'to "all"; raise sequence_length.'
    )


def nothing_made(config: CacheTeacherConfig, units: Units) -> str:
    """What is wrong where no unit has a row."""
    if isinstance(units, UnitRange) and units != ALL_UNITS:
        return (
            f"{config.corpus_title}: none of the units from {units.first} on fills a row of "
            f"{config.sequence_length} tokens: the corpus may end before them."
        )
    return (
        f"{config.corpus_title}: no unit fills a row of {config.sequence_length} tokens. "
        "Lower sequence_length, or raise documents_per_unit."
    )
