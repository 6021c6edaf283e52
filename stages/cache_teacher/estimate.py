"""Estimate the cost of a cache before making it, by measuring a small part of it.

In: the settings, a number of seconds. Out: an ``Estimate``. The teacher is loaded, units of the
same settings are made in a temporary directory until the time is up, and what has come of them by
then is scaled to the budget: units count as far as they are. On a CPU forward passes are small, so
that some are done.
"""

import math
import tempfile
import threading
import time
from collections.abc import Callable, Generator
from contextlib import closing, suppress
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path

import cache_format
from cache_format.codec.row_codec import Row
from cache_format.metadata.spec import CacheSpec
from cache_format.reader import Cache
from stages.cache_teacher.config import ALL_UNITS, CacheTeacherConfig
from stages.cache_teacher.corpus.corpora import Corpora, open_corpora
from stages.cache_teacher.corpus.unit_reader import PreparedUnit, Stopped, UnitReader
from stages.cache_teacher.engine.filling import nothing_made
from stages.cache_teacher.engine.local_engine import make_units
from stages.cache_teacher.engine.unit_maker import Job, UnitMaker
from stages.cache_teacher.reporting.device_use import DeviceUse
from stages.cache_teacher.reporting.progress import CacheProgress, Progress
from stages.cache_teacher.reporting.split_shares import SplitShares, expected_shares
from stages.cache_teacher.setup.open_or_create import CacheOpener
from stages.cache_teacher.setup.teacher_dtype import with_teacher_dtype
from stages.cache_teacher.teacher.lazy_teacher import LazyTeacher
from stages.cache_teacher.teacher.teacher_files import resolve_teacher
from stages.compute.device import choose_device
from stages.model_files.weight_files import weight_files

_CPU_POSITIONS = 512
"""Of a forward pass on a CPU, which is no slower in small ones."""
_TICK_SECONDS = 0.5
FRAMING = "framing"
"""What is in no column: Arrow's messages and padding, and receipts."""


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A cache of ``num_tokens``, scaled up from a small one made with the same settings."""

    num_tokens: int
    """The budget; at least a unit, and at most the corpus, if it ends before the probe does."""
    is_whole_corpus: bool
    """Whether it does."""
    probe_tokens: int
    """Tokens whose rows were encoded to find out."""
    tokens_per_second: float
    """Of one such device, once it runs."""
    device_wait_share: float | None
    mfu: float | None
    column_bytes_per_token: dict[str, float]
    """Bytes a token of each column, and of the framing."""
    teacher_bytes: int
    """The teacher's files in the cache: embedding, head, tokenizer."""
    tokens_per_document: float
    documents_per_unit: float
    """Of several corpora, a mean by how often a unit is of each."""
    spec: CacheSpec
    """Of the probe."""

    @property
    def shares(self) -> SplitShares:
        """Rows of training and validation."""
        tokens_per_unit = self.tokens_per_document * self.documents_per_unit
        return expected_shares(self.spec, math.ceil(self.num_shards), tokens_per_unit)

    @property
    def seconds(self) -> float:
        """On one such device."""
        return self.num_tokens / self.tokens_per_second

    @property
    def num_bytes(self) -> float:
        """On disk."""
        return self.num_tokens * sum(self.column_bytes_per_token.values()) + self.teacher_bytes

    @property
    def num_documents(self) -> float:
        """Documents that the budget takes."""
        return self.num_tokens / self.tokens_per_document

    @property
    def num_shards(self) -> float:
        """Units, each of which is a shard."""
        return self.num_documents / self.documents_per_unit


class _Passes(Progress):
    """Progress that remembers when each forward pass was done."""

    def __init__(self, config: CacheTeacherConfig, report: Callable[[CacheProgress], None]) -> None:
        super().__init__(config.num_tokens, ALL_UNITS, report)
        self.has_any = threading.Event()
        self.last: CacheProgress | None = None
        """How far it was when the last of them was done."""
        self._marks: list[tuple[float, int]] = []

    def begin_unit(self, unit: int, corpus_position: str) -> None:
        """The device is given ``unit``."""
        with self._lock:
            if not self._marks:
                self._marks.append((time.monotonic(), 0))
            super().begin_unit(unit, corpus_position)

    def used(self, use: DeviceUse) -> None:
        """A forward pass is done."""
        with self._lock:
            super().used(use)
            self._marks.append((time.monotonic(), self.use.num_tokens))
            self.show("caching")
            self.last = self._now
        self.has_any.set()

    def rate(self) -> float:
        """Tokens a second after the first pass, which may compile; of one alone, its own."""
        first, last = self._marks[1 if len(self._marks) > 2 else 0], self._marks[-1]
        return (last[1] - first[1]) / max(1e-9, last[0] - first[0])


class _PartMaker(UnitMaker):
    """Makes units that end where they are when it is stopped."""

    def _rows(self, prepared: PreparedUnit) -> Generator[Row, None, None]:
        with suppress(Stopped):
            yield from super()._rows(prepared)


class _Units:
    """The first units, one after the other, until they hold the budget; for any thread."""

    def __init__(self, maker: UnitMaker, num_tokens: int) -> None:
        self._maker, self._budget = maker, num_tokens
        self._numbers, self._lock = count(), threading.Lock()
        self.num_tokens = self.num_documents = 0
        self.has_corpus_ended = False

    def next(self) -> PreparedUnit | None:
        """The next unit, read."""
        with self._lock:
            if self.has_corpus_ended or self.num_tokens >= self._budget:
                return None
            prepared = self._maker.prepare(next(self._numbers))
            if prepared is None:
                self.has_corpus_ended = True
                return None
            self.num_tokens += prepared.num_tokens
            self.num_documents += prepared.num_documents
            return prepared


class _Deadline:
    """Stops ``maker`` once ``seconds`` have gone by and a forward pass is done."""

    def __init__(self, seconds: float, maker: UnitMaker, passes: _Passes) -> None:
        self._end = time.monotonic() + seconds
        self._maker, self._passes = maker, passes
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._wait, name="deadline", daemon=True)
        self.has_come = False

    def __enter__(self) -> "_Deadline":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._is_over.set()
        self._thread.join()

    def _wait(self) -> None:
        while (left := self._end - time.monotonic()) > 0 or not self._passes.has_any.is_set():
            if self._is_over.wait(min(_TICK_SECONDS, max(0.01, left))):
                return
            self._passes.show("caching")
        self.has_come = True
        self._maker.stop()


def estimate(
    config: CacheTeacherConfig, seconds: float, report: Callable[[CacheProgress], None]
) -> Estimate:
    """Cache for ``seconds`` once the teacher is loaded, and scale up. Nothing is left on disk.

    It takes longer only if the first forward pass does. ``report`` is told of the time twice a
    second, from any thread. Raises what ``cache_teacher`` does.
    """
    passes = _Passes(config, report)
    passes.show("resolving")
    device = choose_device(config.device)
    with tempfile.TemporaryDirectory(prefix="xlstm-distill-") as directory:
        out = Path(directory) / "cache"
        probe = with_teacher_dtype(config, out, device, passes.say)
        if device.type == "cpu":
            small = max(1, _CPU_POSITIONS // config.sequence_length)
            probe = replace(probe, rows_per_forward=min(small, config.rows_per_forward or small))
        teacher = LazyTeacher(resolve_teacher(probe), device, passes)
        with open_corpora(probe) as corpora:
            units, is_whole = _make(probe, out, corpora, teacher, seconds, passes)
        cache = cache_format.open(out, allow_incomplete=True)
        if not any(shard.num_tokens for shard in cache.manifest.shards):
            raise ValueError(nothing_made(config, ALL_UNITS))
        return _scaled(config, teacher.source.directory, cache, units, is_whole, passes)


def _make(
    config: CacheTeacherConfig,
    out: Path,
    corpora: Corpora,
    teacher: LazyTeacher,
    seconds: float,
    passes: _Passes,
) -> tuple[_Units, bool]:
    """Make what the time allows; returns the units begun, and whether they are the corpus."""
    beginning = CacheOpener(config=config, out=out, corpora=corpora, teacher=teacher)
    writer, identity = beginning.open(beginning.identity())
    job = Job(config=config, spec=identity.spec, shared=identity.shared, teacher=teacher)
    reader = UnitReader(corpora, teacher.source, identity.spec)
    with closing(_PartMaker(job, reader, writer, passes)) as maker:
        writer.write_attachments(maker.load().export)
        units = _Units(maker, config.num_tokens)
        with _Deadline(seconds, maker, passes) as deadline, suppress(Stopped):
            make_units(maker, units.next, lambda _: None)
    return units, units.has_corpus_ended and not deadline.has_come


def _scaled(
    config: CacheTeacherConfig,
    source: Path,
    cache: Cache,
    units: _Units,
    is_whole: bool,
    passes: _Passes,
) -> Estimate:
    shards = [shard for shard in cache.manifest.shards if shard.num_tokens]
    num_tokens = sum(shard.num_tokens for shard in shards)
    names = shards[0].statistics.column_bytes
    columns = {
        name: sum(shard.statistics.column_bytes[name] for shard in shards) / num_tokens
        for name in names
    }
    num_bytes = sum(shard.num_bytes for shard in shards)
    weight_bytes = 0  # which the probe does not copy
    if config.keep_teacher_weights:
        weight_bytes = sum((source / name).stat().st_size for name in weight_files(source))
    last, per_document = passes.last, units.num_tokens / units.num_documents
    assert last is not None, "rows come of forward passes"
    per_unit = _documents_per_unit(cache.spec)
    least = per_document * per_unit  # a unit is made as a whole
    return Estimate(
        num_tokens=num_tokens if is_whole else max(config.num_tokens, round(least)),
        is_whole_corpus=is_whole,
        probe_tokens=num_tokens,
        tokens_per_second=passes.rate(),
        device_wait_share=last.device_wait_share,
        mfu=last.mfu,
        column_bytes_per_token=columns | {FRAMING: num_bytes / num_tokens - sum(columns.values())},
        teacher_bytes=sum(size for size, _ in cache.attachments().values()) + weight_bytes,
        tokens_per_document=per_document,
        documents_per_unit=per_unit,
        spec=cache.spec,
    )


def _documents_per_unit(spec: CacheSpec) -> float:
    shares = spec.unit_order.shares
    num_documents = sum(
        share * corpus.documents_per_unit
        for share, corpus in zip(shares, spec.each_corpus, strict=True)
    )
    return num_documents / sum(shares)
