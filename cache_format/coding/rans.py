"""Symbols in as few bits as their frequencies allow: interleaved rANS with static tables.

A range variant of asymmetric numeral systems (Duda, arXiv 1311.2540), interleaved over lanes as by
Giesen (arXiv 1402.3392): rows of symbols, one column for each of N positions, are coded column by
column in L lanes, all lanes at once. A lane's state x is in 2¹⁶ … 2³² − 1; to encode a symbol of
frequency f, of a total of 2¹⁴, and cumulated frequency c,

    x ≥ f·2¹⁸:  put out the low 16 bits of x, x ← ⌊x / 2¹⁶⌋,
    x ← ⌊x / f⌋·2¹⁴ + x mod f + c.

The decoder undoes this from the last symbol to the first, so the encoder begins with the last. All
is integer arithmetic: the same bytes on every machine.

The first row is the class of each position, of K, which has K tables of every other row.

A lane may begin with any 16 bits above 2¹⁶, and the decoder finds them in the end: so bytes that
come after the symbols travel in them, 2 for each lane, rather than behind the words.

Shapes: N positions; S rows of symbols behind that of the classes; K classes; L lanes.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from cache_format.coding import bits

TOTAL_BITS = 14
TOTAL = 1 << TOTAL_BITS
"""What the frequencies of a row add up to."""
NUM_SYMBOLS = 256
MAX_LANES = 512
"""A lane costs 1 or 2 bytes, and 2 more that nothing travels in; fewer make NumPy slow."""

_LOW = 1 << 16
_WORD_BITS = 16
_SYMBOL_BITS = 8

Symbols = NDArray[np.uint8]
Frequencies = NDArray[np.uint16]


class RowTables(NamedTuple):
    """What coding a row of symbols looks up, one class after another."""

    frequencies: NDArray[np.uint64]
    """[K·256]"""
    starts: NDArray[np.uint64]
    """[K·256], cumulated frequencies"""
    symbols: Symbols
    """[K·2¹⁴], the symbol of each slot x mod 2¹⁴"""
    steps: NDArray[np.int64]
    """[K·256], the frequency of a symbol in the upper bits, and its start in the lower 16"""


Tables = tuple[RowTables, ...]
"""Of the classes, a row of a single table, and of the S rows of symbols."""


def quantize_frequencies(weights: NDArray[np.float64]) -> Frequencies:
    """Frequencies ∝ ``weights`` ≥ 0, [S, 256], that add up to 2¹⁴ in each row.

    Every symbol of positive weight gets 1 or more. Raises ValueError where a row has no weight.
    """
    sums = weights.sum(1, keepdims=True)
    if not (np.isfinite(sums) & (sums > 0)).all():
        raise ValueError("frequencies: expected a positive weight in every row")
    is_symbol = weights > 0
    num_spare = TOTAL - is_symbol.sum(1, keepdims=True)
    exact = weights / sums * num_spare
    counts = is_symbol + np.floor(exact).astype(np.int64)
    by_remainder = np.argsort(np.floor(exact) - exact, 1, kind="stable")
    for row, order in zip(counts, by_remainder, strict=True):
        row[order[: TOTAL - int(row.sum())]] += 1
    frequencies: Frequencies = counts.astype(np.uint16)
    return frequencies


def make_tables(shares: Frequencies, frequencies: Frequencies) -> Tables:
    """The tables of classes of frequencies ``shares``, [256], and of symbols, [K, S, 256].

    Raises ValueError unless each row adds up to 2¹⁴ and the first K classes alone have shares.
    """
    if frequencies.ndim != 3 or shares.shape != frequencies.shape[2:]:
        raise ValueError("frequencies: expected those of classes and of rows of symbols in each")
    if not shares[: len(frequencies)].all() or shares[len(frequencies) :].any():
        raise ValueError(f"frequencies: expected {len(frequencies)} classes, found others")
    of_rows = frequencies.transpose(1, 0, 2)
    return (_row_tables(shares[None]), *map(_row_tables, of_rows))


def _row_tables(frequencies: Frequencies) -> RowTables:
    """Those of one row of symbols in each class, [K, 256]."""
    wide = frequencies.astype(np.int64)
    if wide.shape[1] != NUM_SYMBOLS or (wide.sum(1) != TOTAL).any():
        raise ValueError(f"frequencies: expected {NUM_SYMBOLS} of a sum of {TOTAL} in every row")
    starts = np.cumsum(wide, 1) - wide
    every = np.tile(np.arange(NUM_SYMBOLS, dtype=np.uint8), len(wide))
    return RowTables(
        frequencies=wide.reshape(-1).astype(np.uint64),
        starts=starts.reshape(-1).astype(np.uint64),
        symbols=np.repeat(every, wide.reshape(-1)),
        steps=(wide << _WORD_BITS | starts).reshape(-1),
    )


def num_lanes(num_positions: int) -> int:
    """L of N positions."""
    return min(num_positions, MAX_LANES)


def encode(symbols: Symbols, tables: Tables, rest: bytes) -> bytes:
    """``symbols``, [1 + S, N], the first row their classes, and ``rest``, which travels along.

    The states of L lanes, the words after them, and of ``rest`` what the lanes did not begin with.
    Raises ValueError where a symbol has a frequency of 0.
    """
    num_positions = symbols.shape[1]
    lanes = num_lanes(num_positions)
    rest = bits.with_length(rest)
    carried = rest[: 2 * lanes].ljust(2 * lanes, b"\0")
    states = np.frombuffer(carried, "<u2").astype(np.uint64) + np.uint64(_LOW)
    words: list[NDArray[np.uint16]] = [np.empty(0, np.uint16)]
    total_bits, limit_bits = np.uint64(TOTAL_BITS), np.uint64(32 - TOTAL_BITS)
    for first in reversed(range(0, num_positions, MAX_LANES)):
        block = symbols[:, first : first + lanes]
        offsets = block[0].astype(np.int64) << _SYMBOL_BITS
        part = states[: len(offsets)]
        for row in reversed(range(len(tables))):
            now = block[row] + offsets if row else block[row]
            frequency = tables[row].frequencies.take(now)
            if not frequency.all():
                raise ValueError("expected symbols of a positive frequency, found others")
            full = np.flatnonzero(part >= (frequency << limit_bits))
            spilled = part[full]
            words.append(spilled.astype(np.uint16))
            part[full] = spilled >> np.uint64(_WORD_BITS)
            quotient = part // frequency
            part -= quotient * frequency
            part += (quotient << total_bits) + tables[row].starts.take(now)
    stream = np.concatenate(words[::-1]).astype("<u2")
    ends = bits.with_length(bits.encode_numbers(states.astype(np.int64)))
    return ends + stream.tobytes() + rest[2 * lanes :]


def decode(
    data: bytes | memoryview, num_positions: int, tables: Tables
) -> tuple[Symbols, memoryview]:
    """The symbols, [1 + S, N], and the bytes that ``encode`` was given.

    Raises ValueError if ``data`` is something else.
    """
    symbols = np.empty((len(tables), num_positions), np.uint8)
    ends, behind = bits.split_length(data)
    states = bits.decode_numbers(ends, num_lanes(num_positions))
    if (states < _LOW).any():
        raise ValueError(f"expected states of {_LOW} or more")
    words = np.frombuffer(behind, "<u2", len(behind) // 2).astype(np.int64)
    used = 0
    for first in range(0, num_positions, MAX_LANES):
        block = symbols[:, first : first + MAX_LANES]
        part = states[: block.shape[1]]
        slot_offsets = symbol_offsets = np.zeros(len(part), np.int64)
        for row, (table, out) in enumerate(zip(tables, block, strict=True)):
            slots = part & (TOTAL - 1)
            table.symbols.take(slots + slot_offsets, out=out, mode="clip")
            steps = table.steps.take(out + symbol_offsets, mode="clip")
            part >>= TOTAL_BITS
            part *= steps >> _WORD_BITS
            part += slots
            part -= steps & (_LOW - 1)
            (empty,) = (part < _LOW).nonzero()
            refilled = part.take(empty)
            refilled <<= _WORD_BITS
            if used + len(empty) > len(words):
                raise ValueError("expected more words, found their end")
            refilled |= words[used : used + len(empty)]
            part[empty] = refilled
            used += len(empty)
            if not row:
                slot_offsets = out.astype(np.int64) << TOTAL_BITS
                symbol_offsets = out.astype(np.int64) << _SYMBOL_BITS
    return symbols, _rest(states, behind[2 * used :])


def _rest(states: NDArray[np.int64], behind: memoryview) -> memoryview:
    """What travels in the states that lanes began with, and behind the words."""
    if (states >= 2 * _LOW).any():
        raise ValueError(f"expected to end in states below {2 * _LOW}, found others")
    carried = (states - _LOW).astype("<u2").tobytes()
    rest, padding = bits.split_length(carried + bytes(behind))
    if len(padding) and (len(behind) or any(padding)):
        raise ValueError(f"expected zeros after {len(rest)} bytes, found others")
    return rest
