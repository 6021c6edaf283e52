"""Store integers in variable-length bit codes.

A number v ≥ 0 is split into its class, which is its bit length, and its raw bits, which are all
bits below its leading one. Classes go through zstd, whose Huffman coder sees how often each occurs;
raw bits look random and are packed as they are, lowest bit first. (The split is Elias's gamma code,
its unary part replaced by an entropy coder.)

Shapes: M numbers.
"""

import struct

import numpy as np
from numpy.typing import NDArray

from cache_format.coding import zstd_cells

MAX_BITS = 32
"""The most raw bits of one field."""

Numbers = NDArray[np.int64]
_LENGTH = struct.Struct("<I")


def bit_lengths(values: NDArray[np.integer]) -> NDArray[np.uint8]:
    """The bit length of each v in 0 … 2³² − 1, [M]: 0 for 0, and 1 + ⌊log₂ v⌋ above."""
    # A float64 holds such a number exactly, and its exponent is the bit length.
    return np.frexp(values.astype(np.float64))[1].astype(np.uint8)


def pack(values: NDArray[np.uint64], lengths: NDArray[np.uint8]) -> bytes:
    """The lowest ``lengths`` bits (at most 32) of each value, one after another, in whole bytes."""
    ends = np.cumsum(lengths, dtype=np.int64)
    num_bits = int(ends[-1]) if len(ends) else 0
    if num_bits == 0:
        return b""
    starts = ends - lengths
    words = np.zeros(num_bits // 32 + 2, np.uint64)
    shifted = values << (starts & 31).astype(np.uint64)
    index = starts >> 5
    first = np.flatnonzero(np.diff(index, prepend=-1))
    # Fields that begin in one 32-bit word share no bit, so their sum is their union.
    words[index[first]] = np.add.reduceat(shifted, first)
    low = (words & np.uint64(0xFFFFFFFF)).astype("<u4")
    low[1:] |= (words[:-1] >> np.uint64(32)).astype("<u4")
    return low.tobytes()[: -(-num_bits // 8)]


def unpack(data: bytes | memoryview, lengths: NDArray[np.uint8]) -> NDArray[np.uint64]:
    """The values that ``pack`` wrote; raises ValueError unless ``data`` is as long as they take."""
    ends = np.cumsum(lengths, dtype=np.int64)
    num_bits = int(ends[-1]) if len(ends) else 0
    if len(data) != -(-num_bits // 8):
        raise ValueError(f"expected {-(-num_bits // 8)} bytes of raw bits, found {len(data)}")
    if num_bits % 8 and data[-1] >> num_bits % 8:
        raise ValueError("expected zero bits after the last raw bits, found others")
    padded = bytes(data) + bytes(8 - len(data) % 4)
    low = np.frombuffer(padded, "<u4").astype(np.uint64)
    words = low[:-1] | (low[1:] << np.uint64(32))
    starts = ends - lengths
    values: NDArray[np.uint64] = words[starts >> 5]
    values >>= (starts & 31).astype(np.uint64)
    values &= _MASKS[lengths]
    return values


_MASKS = (np.uint64(1) << np.arange(MAX_BITS + 1, dtype=np.uint64)) - np.uint64(1)


def encode_numbers(values: NDArray[np.integer]) -> bytes:
    """Numbers from 0 to 2³² − 1, [M], as classes and raw bits."""
    classes = bit_lengths(values)
    raw = values.astype(np.uint64)
    return with_length(zstd_cells.compress(classes.tobytes())) + pack(
        raw & _MASKS[np.maximum(classes, 1) - 1], np.maximum(classes, 1) - np.uint8(1)
    )


def decode_numbers(data: bytes | memoryview, count: int) -> Numbers:
    """``count`` numbers; raises ValueError if ``data`` is not what they were written as."""
    frame, rest = split_length(data)
    classes = np.frombuffer(zstd_cells.decompress(frame, count), np.uint8)
    if count and int(classes.max()) > MAX_BITS:
        raise ValueError(f"expected classes of at most {MAX_BITS}, found {int(classes.max())}")
    leading = np.maximum(classes, 1) - np.uint8(1)
    values = unpack(rest, leading).astype(np.int64)
    values |= np.where(classes > 0, np.int64(1) << leading.astype(np.int64), 0)
    return values


def zigzag(values: Numbers) -> Numbers:
    """0, −1, 1, −2, 2, … as 0, 1, 2, 3, 4, …: small numbers of either sign become small ones."""
    return (values << 1) ^ (values >> 63)


def unzigzag(values: Numbers) -> Numbers:
    """The numbers whose ``zigzag`` is ``values``."""
    return (values >> 1) ^ -(values & 1)


def with_length(data: bytes) -> bytes:
    """``data`` behind its length as uint32."""
    return _LENGTH.pack(len(data)) + data


def split_length(data: bytes | memoryview) -> tuple[memoryview, memoryview]:
    """What ``with_length`` wrote at the beginning of ``data``, and the rest."""
    view = memoryview(data)
    if len(view) < _LENGTH.size:
        raise ValueError(f"expected a length in {_LENGTH.size} bytes, found {len(view)} bytes")
    end = _LENGTH.size + _LENGTH.unpack(view[: _LENGTH.size])[0]
    if end > len(view):
        raise ValueError(f"expected {end} bytes, found {len(view)}")
    return view[_LENGTH.size : end], view[end:]
