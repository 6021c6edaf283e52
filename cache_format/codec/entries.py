"""Entries of a row, kept or drawn: which ids at which level, in order of falling probability.

At every position the entries are sorted by level, and within a level by rank: a level is the
quantized probability (see ``levels.py``), a rank the place of the id in the cache's table of ids by
frequency (see ``ranks.py``). An entry is then two small numbers: how far its level lies below the
one before, and its rank, which within a level is the distance to the one before. So order is paid
for once, by levels; ids of one level cost no order, being sorted. Kept ids of one level differ, so
that their distance begins at 1, of which nothing is stored; an id may be drawn more than once.

Both numbers are split into a class and raw bits (see ``bits.py``). The two classes make one byte, a
symbol, because they depend on one another; symbols are grouped by slot (place within the position),
because the first levels of a position lie far apart and the last ones close together; each group is
one zstd frame. Raw bits of all entries follow, packed.

Shapes: T positions, N entries of the row.
"""

from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from cache_format.coding import zstd_cells
from cache_format.coding.bits import bit_lengths, pack, split_length, unpack, with_length

ESCAPES = (1, 2, 4, 8)
"""Raw bits of the last four classes of a fall; a fall below them has a class of its own."""

_Bytes = NDArray[np.uint8]
_Ints = NDArray[np.int64]


class Entries(NamedTuple):
    """Entries of a row, position after position, levels rising, ranks rising within a level."""

    levels: _Ints
    """[N], from 0 to 255."""
    ranks: _Ints
    """[N]"""


def sort_entries(entries: Entries, num_kept: _Ints) -> Entries:
    """The same entries in the order in which they are stored."""
    position = np.repeat(np.arange(len(num_kept), dtype=np.int64), num_kept)
    keys = np.sort((position << 32) | (entries.levels << 24) | entries.ranks)
    return Entries((keys >> 24) & 0xFF, keys & 0xFFFFFF)


def encode_entries(
    entries: Entries, num_kept: _Ints, vocab_size: int, *, least_distance: int = 1
) -> bytes:
    """Entries as ``sort_entries`` gives them, ``num_kept`` of them at each position.

    Raises ValueError if ranks of one level are closer than ``least_distance``, which is 1 unless an
    id may be there more than once.
    """
    alphabet = _alphabet(vocab_size)
    slots = _slots(num_kept)
    falls, is_same = _falls(entries.levels, slots)
    distances = entries.ranks.copy()
    distances[1:] -= np.where(is_same[1:], entries.ranks[:-1] + least_distance, 0)
    if (distances < 0).any():
        raise ValueError("an id is kept twice at one level of a position")
    fall_class = alphabet.class_of_fall[falls]
    rank_class = bit_lengths(distances)
    symbols = (fall_class * np.uint8(alphabet.num_rank_classes) + rank_class).astype(np.uint8)
    fall_raw = (falls - alphabet.first_fall[fall_class]).astype(np.uint64)
    rank_bits = alphabet.rank_bits[symbols]
    below_leading = (np.uint64(1) << rank_bits.astype(np.uint64)) - np.uint64(1)
    raw = fall_raw << rank_bits.astype(np.uint64) | distances.astype(np.uint64) & below_leading
    groups = _groups(slots)
    parts = [
        with_length(zstd_cells.compress(symbols[groups == group].tobytes()))
        for group in range(_num_groups(num_kept))
    ]
    return b"".join(parts) + pack(raw, alphabet.raw_bits[symbols])


def decode_entries(
    data: bytes | memoryview, num_kept: _Ints, vocab_size: int, *, least_distance: int = 1
) -> Entries:
    """The entries in ``data``; raises ValueError if it is not what they are written as."""
    alphabet = _alphabet(vocab_size)
    slots = _slots(num_kept)
    symbols, rest = _decode_symbols(memoryview(data), slots, _num_groups(num_kept))
    if len(symbols) and int(symbols.max()) >= alphabet.num_symbols:
        raise ValueError(f"expected symbols below {alphabet.num_symbols}, found {symbols.max()}")
    raw = unpack(rest, alphabet.raw_bits[symbols])
    rank_bits = alphabet.rank_bits[symbols]
    falls = (raw >> rank_bits).astype(np.int64)
    falls += alphabet.fall_of_symbol[symbols]
    raw &= alphabet.rank_masks[symbols]
    distances = raw.astype(np.int64)
    distances += alphabet.rank_of_symbol[symbols]
    is_first = slots == 0
    levels = _running_sums(falls, is_first)
    is_same = (falls == 0) & ~is_first
    distances += is_same * least_distance
    ranks = _running_sums(distances, ~is_same)
    if len(ranks) and (int(levels.max()) > 255 or int(ranks.max()) >= vocab_size):
        raise ValueError(
            f"expected levels up to 255 and ranks below {vocab_size}, "
            f"found {int(levels.max())} and {int(ranks.max())}"
        )
    return Entries(levels, ranks)


class _Alphabet(NamedTuple):
    """What each symbol means: class of the fall × num_rank_classes + class of the rank."""

    num_rank_classes: int
    num_symbols: int
    class_of_fall: _Bytes
    """[largest fall + 1]"""
    first_fall: _Ints
    """[classes of falls], the smallest fall of each."""
    raw_bits: _Bytes
    """[256], of both numbers together; the rank's are the lower ones."""
    rank_bits: NDArray[np.uint64]
    """[256]"""
    rank_masks: NDArray[np.uint64]
    """[256]"""
    fall_of_symbol: _Ints
    """[256], the smallest fall."""
    rank_of_symbol: _Ints
    """[256], the leading one of the rank."""


@lru_cache(maxsize=8)
def _alphabet(vocab_size: int) -> _Alphabet:
    num_rank_classes = max(vocab_size - 1, 0).bit_length() + 1
    num_direct = 256 // num_rank_classes - len(ESCAPES)
    fall_bits = np.array([0] * num_direct + list(ESCAPES), np.uint8)
    sizes = np.int64(1) << fall_bits.astype(np.int64)
    first_fall = np.cumsum(sizes) - sizes
    num_symbols = len(fall_bits) * num_rank_classes
    symbol = np.arange(256)
    fall_class = np.minimum(symbol // num_rank_classes, len(fall_bits) - 1)
    rank_class = symbol % num_rank_classes
    rank_bits = np.maximum(rank_class - 1, 0).astype(np.uint64)
    return _Alphabet(
        num_rank_classes=num_rank_classes,
        num_symbols=num_symbols,
        class_of_fall=np.repeat(np.arange(len(sizes), dtype=np.uint8), sizes),
        first_fall=first_fall,
        raw_bits=(fall_bits[fall_class] + rank_bits).astype(np.uint8),
        rank_bits=rank_bits,
        rank_masks=(np.uint64(1) << rank_bits) - np.uint64(1),
        fall_of_symbol=first_fall[fall_class],
        rank_of_symbol=np.where(rank_class > 0, np.int64(1) << rank_bits.astype(np.int64), 0),
    )


def _decode_symbols(data: memoryview, slots: _Ints, num_groups: int) -> tuple[_Bytes, memoryview]:
    symbols = np.zeros(len(slots), np.uint8)
    groups = _groups(slots)
    for group in range(num_groups):
        frame, data = split_length(data)
        members = groups == group
        count = int(np.count_nonzero(members))
        symbols[members] = np.frombuffer(zstd_cells.decompress(frame, count), np.uint8)
    return symbols, data


def _slots(num_kept: _Ints) -> _Ints:
    """The place of each entry within its position, [N]."""
    starts = np.cumsum(num_kept) - num_kept
    return np.arange(int(num_kept.sum()), dtype=np.int64) - np.repeat(starts, num_kept)


def _groups(slots: _Ints) -> _Bytes:
    """0 for slot 0, 1 for slots 1 to 3, 2 for 4 to 15, 3 for 16 to 63, and so on: [N]."""
    return (bit_lengths(slots) + np.uint8(1)) >> np.uint8(1)


def _num_groups(num_kept: _Ints) -> int:
    most = int(num_kept.max(initial=0))
    return int(_groups(np.array([most - 1]))[0]) + 1 if most else 0


def _falls(levels: _Ints, slots: _Ints) -> tuple[_Ints, NDArray[np.bool_]]:
    """How far each level lies below the one before, and whether it is that one's equal: [N]."""
    falls = np.diff(levels, prepend=0)
    is_first = slots == 0
    falls[is_first] = levels[is_first]
    return falls, (falls == 0) & ~is_first


def _running_sums(steps: _Ints, is_start: NDArray[np.bool_]) -> _Ints:
    """Sums of ``steps`` from each start up to each entry, [N]; the first entry is a start."""
    sums = np.cumsum(steps)
    starts = np.flatnonzero(is_start)
    before = sums[starts] - steps[starts]
    sums -= np.repeat(before, np.diff(starts, append=len(steps)))
    return sums
