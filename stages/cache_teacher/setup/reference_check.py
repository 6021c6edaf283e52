"""Check that the loaded teacher reproduces a few rows of an existing cache.

In: a finished shard and a ``TeacherStep``. Out: nothing, or an error that names the position in
which they differ most. The spec's hashes vouch for the weights' files, not for what a library, a
kernel or a device makes of them.

Compared are log-probabilities of next tokens, where they are stored, and what the kind of targets
adds, such as gaps of ids near the largest logit, or hidden states. They differ by what the codec
rounds, and by what the teacher's precision does when sums are taken in another order. Between
attention kernels that was measured (20 rows of 256, a model of 6 layers on a CPU): on average 1e-6
nats in float32, 0.0016 in float16 and 0.013 in bfloat16, at worst 1e-5, 0.02 and 0.2. Weights with
noise of 1 % of their spread differ by 0.02 on average, of 3 % by 0.06.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import numpy.typing as npt

from cache_format.codec.row_codec import Row
from cache_format.errors import CacheError
from cache_format.metadata.manifest import fold
from cache_format.metadata.receipt import ShardEntry
from cache_format.metadata.spec_parts.targets import TargetSpec
from cache_format.reader import Cache
from cache_format.storage.base import LocalSpace
from cache_format.writer import CacheWriter
from stages.cache_teacher.corpus.packing import PackedUnit
from stages.cache_teacher.targets.difference import Difference
from stages.cache_teacher.targets.kinds import kind_of
from stages.cache_teacher.teacher.forward import TeacherStep

_NUM_ROWS = 2
_STORED_LOGPROB = 1 / 128
"""More than the codec's error of a log-probability, in nats."""


@dataclass(frozen=True, kw_only=True)
class Tolerance:
    """How far two runs of one teacher may be apart, in nats, beyond what the codec rounds."""

    mean: float
    """Of the log-probabilities of next tokens, or the distance to hidden states, over all compared
    positions."""
    worst: float
    """Of any one number."""


TOLERANCES = {
    "float32": Tolerance(mean=0.005, worst=0.02),
    "float16": Tolerance(mean=0.02, worst=0.3),
    "bfloat16": Tolerance(mean=0.05, worst=1.5),
}


def choose_reference_shard(entries: Iterable[ShardEntry]) -> ShardEntry | None:
    """The shard that a teacher is compared with: the first that has scored positions."""
    with_targets = (entry for entry in entries if entry.statistics.num_scored)
    return min(with_targets, key=lambda entry: entry.unit, default=None)


def require_agreement(
    writer: CacheWriter, reference_shard: ShardEntry, step: TeacherStep, rows_per_forward: int
) -> None:
    """Raise CacheError unless ``step`` makes what ``reference_shard`` holds, within rounding."""
    spec = writer.spec
    stored = _rows_of(writer, reference_shard, rows_per_forward)
    # As many rows at a time as when it was made: then the same machine makes the same bits.
    batch = PackedUnit(
        token_ids_RT=np.stack([row.token_ids for row in stored]),
        document_starts=[row.document_starts for row in stored],
        num_dropped_tokens=0,
        is_context_RT=_context_of(stored),
    )
    made = step.launch(batch, reference_shard.unit, 0).rows()
    differences = [
        difference
        for number, (one, other) in enumerate(zip(stored[:_NUM_ROWS], made, strict=False))
        for difference in compare(one, other, spec.targets, number)
    ]
    tolerance = TOLERANCES.get(spec.teacher.dtype, TOLERANCES["bfloat16"])
    problem = disagreement(differences, tolerance)
    if problem is not None:
        raise CacheError(
            f"{writer.path}: the teacher does not reproduce what this cache holds: unit "
            f"{reference_shard.unit}, {problem}. The weight files are those that made the cache, "
            "so their environment has changed: the attention kernel, the version of PyTorch or "
            "transformers, the device, or something that alters weights when they are loaded. "
            "Restore the environment, or make another cache; nothing was written."
        )


def disagreement(differences: list[Difference], tolerance: Tolerance) -> str | None:
    """What is wrong, with the place and both values; None if all is within ``tolerance``."""
    if not differences:
        return None
    worst = max(differences, key=lambda difference: difference.excess)
    averaged = [d for d in differences if d.is_averaged]
    mean = float(np.mean([abs(d.stored - d.made) for d in averaged]))
    if worst.excess <= tolerance.worst and mean <= tolerance.mean + _STORED_LOGPROB / 2:
        return None
    return (
        f"row {worst.row}, position {worst.position}: {worst.what} is {worst.stored:.4f} in the "
        f"cache and {worst.made:.4f} now (allowed: {worst.rounding + tolerance.worst:.4f} apart); "
        f"{averaged[0].what} differs by {mean:.4f} on average (allowed: "
        f"{tolerance.mean + _STORED_LOGPROB / 2:.4f})"
    )


def compare(stored: Row, made: Row, spec: TargetSpec, number: int) -> Iterator[Difference]:
    """What the cache holds of a row beside what was made of it now."""
    scored = np.flatnonzero(stored.scored()) if stored.kept_ids is not None else ()
    for t in scored:
        yield Difference(
            row=number,
            position=int(t),
            what="the next token's log-probability",
            stored=float(stored.kept.next_logprob[t]),
            made=float(made.kept.next_logprob[t]),
            rounding=_STORED_LOGPROB,
            is_averaged=True,
        )
    yield from kind_of(spec).differences(stored, made, spec, number)


def _context_of(rows: list[Row]) -> npt.NDArray[np.bool_] | None:
    """The positions of all rows that are context, [R, T]; None where no row has any."""
    if all(row.is_context is None for row in rows):
        return None
    none = np.zeros(len(rows[0].token_ids) - 1, np.bool_)
    return np.stack([none if row.is_context is None else row.is_context for row in rows])


def _rows_of(writer: CacheWriter, entry: ShardEntry, num_rows: int) -> list[Row]:
    """The first rows of a shard, every byte compared with its hash."""
    alone = fold(writer.spec, [entry], None, num_tokens_requested=0, complete=False)
    wanted = range(min(num_rows, entry.num_rows))
    with TemporaryDirectory(prefix="xlstm-distill-") as directory:  # for a shard at a URL
        cache = Cache(writer.storage, alone, LocalSpace(directory=Path(directory)))
        return [cache.read_row_of(entry, number, with_sketch=False) for number in wanted]
