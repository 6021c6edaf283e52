"""Symbols in as few bits as their frequencies allow: interleaved rANS with static tables.

A range variant of asymmetric numeral systems (Duda, arXiv 1311.2540), interleaved over lanes as by
Giesen (arXiv 1402.3392): S rows of symbols, one column for each of N positions, are coded column
by column in L lanes, all lanes at once. A lane's state x is in 2¹⁶ … 2³² − 1; to encode a symbol of
frequency f, of a total of 2¹⁴, and cumulated frequency c,

    x ≥ f·2¹⁸:  put out the low 16 bits of x, x ← ⌊x / 2¹⁶⌋,
    x ← ⌊x / f⌋·2¹⁴ + x mod f + c.

The decoder undoes this from the last symbol to the first, so the encoder begins with the last. All
is integer arithmetic: the same bytes on every machine.

Shapes: S rows of symbols, each with frequencies of its own; N positions; L lanes; W words.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

TOTAL_BITS = 14
TOTAL = 1 << TOTAL_BITS
"""What the frequencies of a row add up to."""
NUM_SYMBOLS = 256
MAX_LANES = 512
"""A lane costs 2 to 4 bytes; fewer make NumPy slow."""

_LOW = 1 << 16
_WORD_BITS = 16

Symbols = NDArray[np.uint8]
Frequencies = NDArray[np.uint16]


class Tables(NamedTuple):
    """What coding looks up; see ``make_tables``."""

    frequencies: NDArray[np.uint32]
    """[S, 256]"""
    starts: NDArray[np.uint32]
    """[S, 256], cumulated frequencies"""
    symbols: Symbols
    """[S, 2¹⁴], the symbol of each slot x mod 2¹⁴"""
    steps: NDArray[np.uint32]
    """[S, 2¹⁴], its frequency in the upper half, and in the lower the slot less its start"""


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


def make_tables(frequencies: Frequencies) -> Tables:
    """The tables of S rows; raises ValueError unless each row adds up to 2¹⁴."""
    wide = frequencies.astype(np.uint32)
    if wide.ndim != 2 or wide.shape[1] != NUM_SYMBOLS or (wide.sum(1) != TOTAL).any():
        raise ValueError(f"frequencies: expected {NUM_SYMBOLS} of a sum of {TOTAL} in every row")
    starts = np.cumsum(wide, 1, dtype=np.uint32) - wide
    every = np.arange(NUM_SYMBOLS, dtype=np.uint8)
    symbols = np.stack([np.repeat(every, row) for row in wide]).reshape(-1, TOTAL)
    slots = np.arange(TOTAL, dtype=np.uint32)
    offsets = slots - np.take_along_axis(starts, symbols.astype(np.int64), 1)
    of_slots = np.take_along_axis(wide, symbols.astype(np.int64), 1)
    steps = (of_slots << np.uint32(_WORD_BITS)) | offsets
    return Tables(wide, starts, symbols, steps)


def num_lanes(num_positions: int) -> int:
    """L of N positions."""
    return min(num_positions, MAX_LANES)


def encode(symbols: Symbols, tables: Tables) -> bytes:
    """``symbols``, [S, N], as L states of 32 bits and the words after them, little-endian.

    Raises ValueError where a symbol has a frequency of 0.
    """
    num_positions = symbols.shape[1]
    lanes = num_lanes(num_positions)
    if not num_positions:
        return b""
    states = np.full(lanes, _LOW, np.uint64)
    words: list[NDArray[np.uint16]] = []
    total_bits, limit_bits = np.uint64(TOTAL_BITS), np.uint64(32 - TOTAL_BITS)
    for first in reversed(range(0, num_positions, lanes)):
        for row in reversed(range(len(symbols))):
            now = symbols[row, first : first + lanes]
            frequency = tables.frequencies[row].take(now).astype(np.uint64)
            if not frequency.all():
                raise ValueError("expected symbols of a positive frequency, found others")
            part = states[: len(now)]
            full = np.flatnonzero(part >= (frequency << limit_bits))
            spilled = part[full]
            words.append(spilled.astype(np.uint16))
            part[full] = spilled >> np.uint64(_WORD_BITS)
            quotient = part // frequency
            part -= quotient * frequency
            part += (quotient << total_bits) + tables.starts[row].take(now)
    stream = np.concatenate(words[::-1]).astype("<u2")
    return states.astype("<u4").tobytes() + stream.tobytes()


def decode(data: bytes | memoryview, num_positions: int, tables: Tables) -> Symbols:
    """The symbols, [S, N], that ``encode`` wrote; raises ValueError if ``data`` is something else.

    It ends where encoding began: all words used up and every state at 2¹⁶.
    """
    num_rows, lanes = len(tables.symbols), num_lanes(num_positions)
    symbols = np.empty((num_rows, num_positions), np.uint8)
    if not num_positions and not len(data):
        return symbols
    if len(data) < 4 * lanes or len(data) % 2:
        raise ValueError(f"expected {lanes} states and words after them, found {len(data)} bytes")
    states = np.frombuffer(data, "<u4", lanes).astype(np.uint32)
    words = np.frombuffer(data, "<u2", offset=4 * lanes).astype(np.uint32)
    if (states < _LOW).any():
        raise ValueError(f"expected states of {_LOW} or more")
    slot_mask, low_mask = np.uint32(TOTAL - 1), np.uint32(_LOW - 1)
    total_bits, word_bits = np.uint32(TOTAL_BITS), np.uint32(_WORD_BITS)
    used = 0
    for first in range(0, num_positions, lanes):
        for row in range(num_rows):
            out = symbols[row, first : first + lanes]
            part = states[: len(out)]
            slots = part & slot_mask
            tables.symbols[row].take(slots, out=out, mode="clip")
            steps = tables.steps[row].take(slots, mode="clip")
            part >>= total_bits
            part *= steps >> word_bits
            part += steps & low_mask
            empty = np.flatnonzero(part < _LOW)
            refill = words[used : used + len(empty)]
            if len(refill) != len(empty):
                raise ValueError("expected more words, found their end")
            part[empty] = (part[empty] << word_bits) | refill
            used += len(empty)
    if used != len(words):
        raise ValueError(f"expected {used} words, found {len(words)}")
    if (states != _LOW).any():
        raise ValueError(f"expected to end in states of {_LOW}, found others")
    return symbols
