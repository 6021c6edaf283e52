"""What a cache will cost, before anyone pays for it: measured by making a little of it.

In: the settings, a number of seconds. Out: an ``Estimate``. Called by ``pipeline estimate``. The
teacher is loaded, a cache of the same settings is made in a temporary directory until the time is
up, and what came of it is scaled to the budget. Only on a CPU units are smaller, so that some are
finished.
"""

import math
import tempfile
from collections.abc import Callable
from contextlib import closing, suppress
from dataclasses import dataclass, replace
from pathlib import Path

import cache_format
from cache_format.errors import CacheError
from cache_format.reader import Cache
from cache_format.spec import CacheSpec
from stages.cache_teacher.config import CacheTeacherConfig
from stages.cache_teacher.corpus.corpus import resolve_corpus
from stages.cache_teacher.engine.batch_size import CPU_POSITIONS
from stages.cache_teacher.engine.progress import CacheProgress
from stages.cache_teacher.engine.split_shares import SplitShares, expected_shares
from stages.cache_teacher.run import cache_teacher
from stages.cache_teacher.teacher.teacher_files import resolve_teacher
from stages.device import choose_device

_FORWARDS = 4
"""Forward passes of a unit on a CPU: enough that the last, which may be small, does not count."""
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
    """Tokens that were cached to find out."""
    tokens_per_second: float
    """Of one such device, once it runs."""
    device_wait_share: float | None
    mfu: float | None
    column_bytes_per_token: dict[str, float]
    """Bytes a token of each column, and of the framing."""
    teacher_bytes: int
    """The teacher's files in the cache: embedding, head, tokenizer."""
    tokens_per_document: float
    documents_per_unit: int
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


class _Enough(Exception):
    """Ends the probe."""


class _Watch:
    """Hands progress on, and ends the run once it has gone on for long enough."""

    def __init__(self, seconds: float, report: Callable[[CacheProgress], None]) -> None:
        self._seconds, self._report = seconds, report
        self._started: float | None = None
        self._marks: list[CacheProgress] = []
        """How far it was when it first told of one more finished unit."""
        self.last: CacheProgress | None = None
        """How far it came."""

    def __call__(self, progress: CacheProgress) -> None:
        self._report(replace(progress, message=""))  # what is said of the probe's units
        self.last = progress
        if progress.tokens_cached_this_run == 0 or progress.phase != "caching":
            return
        if self._started is None:
            self._started = progress.seconds
        if progress.units_made > len(self._marks):
            self._marks.append(progress)
        has_run = progress.seconds - self._started
        enough = len(self._marks) >= 2 or (self._marks and has_run >= 3 * self._seconds)
        if enough and has_run >= self._seconds:
            raise _Enough

    def rate(self) -> float:
        """Tokens a second between the ends of the first unit and the last.

        At both, as much is on the device and not yet told of; and the first forward pass, which may
        compile, lies before. With one unit alone, all there is.
        """
        assert self.last is not None
        if len(self._marks) >= 2:
            first, last = self._marks[0], self._marks[-1]
            tokens = last.tokens_cached_this_run - first.tokens_cached_this_run
            if tokens > 0 and last.seconds > first.seconds:
                return tokens / (last.seconds - first.seconds)
        return self.last.tokens_cached_this_run / max(1e-9, self.last.seconds)


def estimate(
    config: CacheTeacherConfig, seconds: float, report: Callable[[CacheProgress], None]
) -> Estimate:
    """Cache for ``seconds`` after the first rows, and scale up. Nothing is left on disk.

    Raises what ``cache_teacher`` does, and whatever ends it before it has cached anything.
    """
    probe = replace(config, documents_per_unit=_documents_of_probe(config))
    watch = _Watch(seconds, report)
    with tempfile.TemporaryDirectory(prefix="xlstm-distill-") as directory:
        with suppress(_Enough):
            cache_teacher(probe, Path(directory) / "cache", recipe_toml="", report=watch)
        cache = cache_format.open(Path(directory) / "cache", allow_incomplete=True)
        return _scaled(config, cache, watch)


def _documents_of_probe(config: CacheTeacherConfig) -> int:
    """Documents of a unit that is finished soon; a GPU is soon done with any."""
    if choose_device(config.device).type == "cuda":
        return config.documents_per_unit
    source = resolve_teacher(config)
    with closing(resolve_corpus(config)) as corpus:
        documents = corpus.read_unit(0)
    if documents is None:
        return config.documents_per_unit
    ids = source.document_tokenizer.encode(documents.texts)
    num_tokens = sum(len(one) + 1 for one in ids)
    num_rows = config.rows_per_forward or max(1, CPU_POSITIONS // config.sequence_length)
    wanted = _FORWARDS * num_rows * config.sequence_length
    share = min(1.0, wanted / max(1, num_tokens))
    return max(1, math.ceil(share * config.documents_per_unit))


def _scaled(config: CacheTeacherConfig, cache: Cache, watch: _Watch) -> Estimate:
    shards = cache.manifest.shards
    num_tokens = sum(shard.num_tokens for shard in shards)
    if num_tokens == 0:
        raise CacheError("the probe finished no shard: give it more seconds")
    names = shards[0].statistics.column_bytes
    columns = {
        name: sum(shard.statistics.column_bytes[name] for shard in shards) / num_tokens
        for name in names
    }
    num_bytes = sum(shard.num_bytes for shard in shards)
    last, num_documents = watch.last, sum(shard.num_documents for shard in shards)
    assert last is not None
    is_whole = last.phase == "corpus ended"
    least = num_tokens / num_documents * config.documents_per_unit  # a unit is made as a whole
    return Estimate(
        num_tokens=num_tokens if is_whole else max(config.num_tokens, round(least)),
        is_whole_corpus=is_whole,
        probe_tokens=num_tokens,
        tokens_per_second=watch.rate(),
        device_wait_share=last.device_wait_share,
        mfu=last.mfu,
        column_bytes_per_token=columns | {FRAMING: num_bytes / num_tokens - sum(columns.values())},
        teacher_bytes=sum(size for size, _ in cache.attachments().values()),
        tokens_per_document=num_tokens / num_documents,
        documents_per_unit=config.documents_per_unit,
        spec=cache.spec,
    )
