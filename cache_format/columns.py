"""The bytes of each column of one row: arrays to bytes and back, pure functions.

Every encoder refuses what it could not give back, with a ValueError that names the position.
Every decoder raises ValueError if the bytes are not of the length that the row calls for.
Multi-byte numbers are split into byte planes (all lowest bytes, then all second bytes, …), because
zstd finds more in planes than in interleaved bytes.

Shapes: T positions, N kept entries of the row (all positions together), n nodes, d sketch.
"""

import numpy as np
from numpy.typing import NDArray

ID_BYTES = 3
MAX_GAP_STEPS = 65_535
NO_TAIL = -32_768
MIN_FLOAT16 = -65_504.0

Ints = NDArray[np.int32]
Floats = NDArray[np.float32]
Counts = NDArray[np.uint16]


def encode_ids(ids: Ints, vocab_size: int, position: NDArray[np.int64] | None = None) -> bytes:
    """Ids as three byte planes. A row's token ids and its kept ids are stored alike.

    ``position`` says which position each id belongs to, where that is not its index.
    """
    _require_1d(ids, "ids")
    if not np.issubdtype(ids.dtype, np.integer):
        raise ValueError(f"ids: expected integers, found {ids.dtype}")
    _require_all(
        (ids >= 0) & (ids < vocab_size), ids, f"an id from 0 to {vocab_size - 1}", position
    )
    return _to_planes(ids.astype("<u4"), ID_BYTES)


def decode_ids(data: bytes | memoryview, count: int) -> Ints:
    """``count`` ids."""
    planes = _planes(data, count, ID_BYTES)
    ids: Ints = planes[2].astype(np.int32)
    for plane in (planes[1], planes[0]):
        ids <<= 8
        ids |= plane
    return ids


def encode_num_kept(num_kept: Counts, top_k: int) -> bytes:
    """How many ids each position keeps, [T]."""
    _require_1d(num_kept, "num_kept")
    if not np.issubdtype(num_kept.dtype, np.integer):
        raise ValueError(f"num_kept: expected integers, found {num_kept.dtype}")
    _require_all((num_kept >= 0) & (num_kept <= top_k), num_kept, f"a count from 0 to {top_k}")
    return _to_planes(num_kept.astype("<u2"), 2)


def decode_num_kept(data: bytes | memoryview, count: int) -> Counts:
    """How many ids each position keeps, [T]."""
    return _from_two_planes(data, count)


def encode_gaps(gaps: Floats, num_kept: Counts, step: float) -> bytes:
    """Gaps to the largest logit, [N], rounded to ``step`` and delta-coded along each position.

    They are rounded before they are delta-coded, so that errors do not add up: each is off by at
    most step/2.
    """
    starts = _starts(num_kept, len(gaps), "gaps")
    _require_1d(gaps, "gaps")
    position = np.repeat(np.arange(len(num_kept)), num_kept)
    _require_all(np.isfinite(gaps) & (gaps >= 0), gaps, "a finite gap ≥ 0", position)
    with np.errstate(over="ignore"):
        steps = np.rint(gaps.astype(np.float64) / step)
    _require_all(
        steps <= MAX_GAP_STEPS, gaps, f"a gap of at most {MAX_GAP_STEPS * step} nats", position
    )
    _require_all(gaps[starts] == 0, gaps[starts], "a first gap of 0", position[starts])
    falls = np.zeros(len(gaps), bool)
    falls[1:] = gaps[1:] < gaps[:-1]
    falls[starts] = False
    _require_all(~falls, gaps, "gaps that do not fall along the rank", position)
    deltas = np.diff(steps.astype("<u2"), prepend=np.uint16(0))
    deltas[starts] = 0
    return _to_planes(deltas, 2)


def decode_gaps(data: bytes | memoryview, num_kept: Counts, step: float) -> Floats:
    """Gaps to the largest logit, [N]."""
    deltas = _from_two_planes(data, int(num_kept.sum(dtype=np.int64)))
    starts = _starts(num_kept, len(deltas), "gaps")
    running = np.cumsum(deltas, dtype=np.uint16)  # wraps, and the difference unwraps
    running -= np.repeat(running[starts], num_kept[num_kept > 0])
    gaps: Floats = running.astype(np.float32)
    gaps *= np.float32(step)
    return gaps


def encode_tail(tail: Floats, step: float) -> bytes:
    """Log-masses of the tail, [T, n], rounded to ``step``: node by node, each minus the one before.

    −inf (nothing left out) has a code of its own. What is below −32767 steps is stored as that:
    at the coarsest step that matters to nobody, being a mass of less than exp(−31).
    """
    if tail.ndim != 2:
        raise ValueError(f"tail_log_mass: expected [positions, nodes], found shape {tail.shape}")
    position = np.repeat(np.arange(tail.shape[0]), tail.shape[1])
    flat = tail.reshape(-1)
    allowed = ~np.isnan(flat) & (flat <= -(NO_TAIL + 1) * step)
    _require_all(allowed, flat, f"a log-mass of at most {-(NO_TAIL + 1) * step}", position)
    with np.errstate(over="ignore"):
        steps = np.maximum(np.rint(tail.astype(np.float64) / step), NO_TAIL + 1)
    codes = np.where(np.isneginf(tail), NO_TAIL, steps).astype("<i2").view("<u2").T
    deltas = np.diff(codes, axis=0, prepend=np.zeros((1, codes.shape[1]), np.uint16))
    return _to_planes(deltas.reshape(-1), 2)


def decode_tail(
    data: bytes | memoryview, num_positions: int, num_nodes: int, step: float
) -> Floats:
    """Log-masses of the tail, [T, n]."""
    deltas = _from_two_planes(data, num_positions * num_nodes).reshape(num_nodes, num_positions)
    codes = np.cumsum(deltas, axis=0, dtype=np.uint16).view(np.int16)
    tail: Floats = np.ascontiguousarray(codes.T).astype(np.float32)
    empty = tail == NO_TAIL
    tail *= np.float32(step)
    tail[empty] = -np.inf
    return tail


def encode_next_logprob(next_logprob: Floats) -> bytes:
    """Log-probability of the next token, [T], as float16."""
    _require_1d(next_logprob, "next_logprob")
    # A log-softmax in float32 may end a rounding error above 0.
    allowed = (next_logprob >= MIN_FLOAT16) & (next_logprob <= 1e-3)
    _require_all(allowed, next_logprob, f"a log-probability from {MIN_FLOAT16} to 0")
    return _to_planes(np.minimum(next_logprob, 0).astype("<f2").view("<u2"), 2)


def decode_next_logprob(data: bytes | memoryview, count: int) -> Floats:
    """Log-probability of the next token, [T]."""
    values: Floats = _from_two_planes(data, count).view(np.float16).astype(np.float32)
    return values


def encode_sketch(sketch: Floats) -> tuple[bytes, bytes]:
    """Sketches, [T, d], as int8 and one float32 scale a position: off by at most scale/2."""
    if sketch.ndim != 2:
        raise ValueError(f"sketch: expected [positions, dim], found shape {sketch.shape}")
    finite = np.isfinite(sketch).all(axis=1)
    _require_all(finite, np.where(finite, 0, np.nan), "finite numbers")
    largest = np.abs(sketch).max(axis=1, initial=0.0)
    scale = np.where(largest < 1e-30, 0, largest / 127).astype("<f4")
    divisor = np.where(scale == 0, np.inf, scale).astype(np.float64)[:, None]
    levels = np.clip(np.rint(sketch / divisor), -127, 127).astype(np.int8)
    return levels.tobytes(), scale.tobytes()


def decode_sketch(
    data: bytes | memoryview, scale: bytes | memoryview, shape: tuple[int, int]
) -> Floats:
    """Sketches, [T, d]."""
    if len(data) != shape[0] * shape[1] or len(scale) != 4 * shape[0]:
        raise ValueError(
            f"sketch: expected {shape[0] * shape[1]} and {4 * shape[0]} bytes, "
            f"found {len(data)} and {len(scale)}"
        )
    levels = np.frombuffer(data, np.int8).reshape(shape)
    values: Floats = levels * np.frombuffer(scale, "<f4").astype(np.float32)[:, None]
    return values


def _to_planes(values: NDArray[np.unsignedinteger], num_bytes: int) -> bytes:
    bytes_of_each = values.view(np.uint8).reshape(len(values), values.dtype.itemsize)
    return bytes_of_each[:, :num_bytes].T.tobytes()


def _planes(data: bytes | memoryview, count: int, num_bytes: int) -> NDArray[np.uint8]:
    if len(data) != count * num_bytes:
        raise ValueError(f"expected {count * num_bytes} bytes, found {len(data)}")
    return np.frombuffer(data, np.uint8).reshape(num_bytes, count)


def _from_two_planes(data: bytes | memoryview, count: int) -> Counts:
    planes = _planes(data, count, 2)
    values: Counts = planes[1].astype(np.uint16)
    values <<= 8
    values |= planes[0]
    return values


def _starts(num_kept: Counts, num_entries: int, name: str) -> NDArray[np.int64]:
    """Where each position that keeps anything begins among the row's entries."""
    ends = np.cumsum(num_kept, dtype=np.int64)
    if (int(ends[-1]) if len(ends) else 0) != num_entries:
        raise ValueError(f"{name}: expected sum(num_kept) entries, found {num_entries}")
    starts: NDArray[np.int64] = (ends - num_kept)[num_kept > 0]
    return starts


def _require_1d(values: NDArray[np.generic], name: str) -> None:
    if values.ndim != 1:
        raise ValueError(f"{name}: expected one dimension, found shape {values.shape}")


def _require_all(
    holds: NDArray[np.bool_] | np.bool_,
    values: NDArray[np.generic],
    expected: str,
    position: NDArray[np.int64] | None = None,
) -> None:
    if not holds.all():
        bad = int(np.argmin(holds))
        where = bad if position is None else int(position[bad])
        raise ValueError(f"position {where}: expected {expected}, found {values[bad]}")
