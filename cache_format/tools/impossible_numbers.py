"""What a receipt says of its unit that is true of no unit, from the receipt and the spec alone.

A receipt's numbers are for people: no reader depends on them, so a cache whose rows are whole is
not refused because of them. Whoever shows them says which ones cannot be.
"""

import math
from collections.abc import Iterator

from cache_format.codec.targets.kinds import kind_of
from cache_format.metadata.receipt import ShardEntry
from cache_format.metadata.spec import CacheSpec

_LEAST_BYTES_OF_ROW = 16  # an int32 offset in each of four columns, the fewest that a cache has
_FRAMING_BYTES = 1 << 16  # of a row or a shard, far above what Arrow and zstd need
_BYTES_OF_ENTRY = 16  # far above a symbol and its raw bits
_OTHER_ENTRIES = 64  # of a position: its token, tail and label
_BYTES_OF_COEFFICIENT = 8  # a word of its symbol, and the class and the raw bits of its excess
_BYTES_OF_DIMENSION = 8
_ROUNDING = 1e-6  # of a sum, and of each of its terms


def impossible_numbers(entry: ShardEntry, spec: CacheSpec) -> list[str]:
    """Each number of ``entry`` that no unit can have: its name, the number, what is expected."""
    statistics = entry.statistics
    bounds = [*_of_unit(entry, spec), *_of_statistics(entry, spec)]
    bounds += [
        (f"statistics.column_bytes.{name}", size, 0, entry.num_bytes)
        for name, size in statistics.column_bytes.items()
    ]
    found = [
        f"{name} is {value:,}, expected {least:,} to {most:,}"
        for name, value, least, most in bounds
        if not least <= value <= most
    ]
    if entry.num_tokens != entry.num_rows * spec.sequence_length:
        found.append(
            f"num_tokens is {entry.num_tokens:,}, expected {entry.num_rows:,} rows of "
            f"{spec.sequence_length:,}"
        )
    return found


_Bound = tuple[str, float, float, float]
"""Name, value, least and most."""


def _of_unit(entry: ShardEntry, spec: CacheSpec) -> Iterator[_Bound]:
    targets, num_documents = spec.targets, spec.corpus_of(entry.unit).documents_per_unit
    entries = _OTHER_ENTRIES
    if targets.kept is not None:
        entries += targets.kept.top_k
    if targets.draws is not None:
        entries += targets.draws.num_draws
    position = entries * _BYTES_OF_ENTRY
    for coded in (targets.hidden, targets.moment):
        if coded is not None:
            position += coded.num_components * _BYTES_OF_COEFFICIENT
    position += spec.sketch.num_states * spec.sketch.dim * _BYTES_OF_DIMENSION
    row = spec.sequence_length * position + _FRAMING_BYTES
    yield "num_rows", entry.num_rows, 0, entry.num_bytes // _LEAST_BYTES_OF_ROW
    yield "num_bytes", entry.num_bytes, 0, entry.num_rows * row + _FRAMING_BYTES
    yield "num_documents", entry.num_documents, min(entry.num_rows, 1), num_documents
    yield "num_skipped_documents", entry.num_skipped_documents, 0, num_documents
    if entry.conversations is not None:
        for name, count in vars(entry.conversations).items():
            yield f"conversations.{name}", count, 0, num_documents
    yield "num_dropped_tokens", entry.num_dropped_tokens, 0, spec.sequence_length


def _of_statistics(entry: ShardEntry, spec: CacheSpec) -> Iterator[_Bound]:
    statistics = entry.statistics
    n = statistics.num_scored
    yield "statistics.num_scored", n, 0, entry.num_tokens
    for name, (least, most) in kind_of(spec).bounds_of_sums(spec.targets).items():
        value = statistics.sums.get(name, math.nan)  # which is outside of all bounds
        rounding = _ROUNDING * (1 + n)
        yield f"statistics.sums.{name}", value, n * least - rounding, n * most + rounding
