"""The bytes of each column of one row: arrays to bytes and back, pure functions.

Every encoder refuses what it could not give back, with a ValueError that names the position.
Every decoder raises ValueError if the bytes are not what the row calls for. Numbers go through
``bits.py``, kept entries through ``entries.py``; sketches are byte planes (all lowest bytes, then
all second bytes, …) in zstd frames.

Shapes: T positions, N kept entries of the row (all positions together), n nodes, d sketch.
"""

from collections.abc import Callable
from typing import Any, Literal, TypeVar

import numpy as np
from numpy.typing import NDArray

from cache_format.coding import zstd_cells
from cache_format.coding.bits import decode_numbers, encode_numbers, unzigzag, zigzag
from cache_format.tables.vocabulary_ranks import RankTable

MIN_LOGPROB = -65_504.0
_MOST_STEPS = 2**30
_TINY = 1e-30
_MAX_SCALE = 1e36  # of int8, above that of the largest sketch there may be

Ints = NDArray[np.int32]
Floats = NDArray[np.float32]
Counts = NDArray[np.uint16]
SketchDtype = Literal["int8", "float16", "float32"]
_T = TypeVar("_T")


def named(column: str, action: Callable[[], _T]) -> _T:
    """What ``action`` gives; its ValueError is raised with the column's name before it."""
    try:
        return action()
    except ValueError as error:
        raise ValueError(f"{column}: {error}") from error


def encode_token_ids(ids: Ints, ranks: RankTable) -> bytes:
    """The tokens of a row, [T + 1], as ranks."""
    _require_1d(ids, "ids")
    require_ids(ids, len(ranks.ids_by_rank))
    return encode_numbers(ranks.ranks_by_id[ids])


def decode_token_ids(data: bytes | memoryview, count: int, ranks: RankTable) -> Ints:
    """``count`` ids."""
    found = decode_numbers(data, count)
    if count and int(found.max()) >= len(ranks.ids_by_rank):
        raise ValueError(f"expected ranks below {len(ranks.ids_by_rank)}, found {found.max()}")
    ids: Ints = ranks.ids_by_rank[found]
    return ids


def require_ids(ids: Ints, vocab_size: int, position: NDArray[np.int64] | None = None) -> None:
    """Raise ValueError unless all are ids; ``position`` is where each is, if not at its index."""
    if not np.issubdtype(ids.dtype, np.integer):
        raise ValueError(f"ids: expected integers, found {ids.dtype}")
    allowed = (ids >= 0) & (ids < vocab_size)
    require_all(allowed, ids, f"an id from 0 to {vocab_size - 1}", position)


def encode_context(is_context: NDArray[np.bool_] | None) -> bytes:
    """Positions whose label is not to be learned, [T], a bit each; nothing where there are none."""
    if is_context is None or not is_context.any():
        return b""
    return zstd_cells.compress(np.packbits(is_context, bitorder="little").tobytes())


def decode_context(data: bytes | memoryview, num_positions: int) -> NDArray[np.bool_] | None:
    """The positions, [T]; None where there are none."""
    if not len(data):
        return None
    packed = np.frombuffer(zstd_cells.decompress(data, -(-num_positions // 8)), np.uint8)
    bits = np.unpackbits(packed, bitorder="little").astype(np.bool_)
    if bits[num_positions:].any() or not bits.any():
        raise ValueError("expected a bit for some of the positions, and no bits after them")
    return bits[:num_positions]


def encode_num_kept(num_kept: Counts, top_k: int) -> bytes:
    """How many ids each position keeps, [T]: each minus the one before."""
    _require_1d(num_kept, "num_kept")
    if not np.issubdtype(num_kept.dtype, np.integer):
        raise ValueError(f"num_kept: expected integers, found {num_kept.dtype}")
    require_all((num_kept >= 0) & (num_kept <= top_k), num_kept, f"a count from 0 to {top_k}")
    return encode_numbers(zigzag(_steps(num_kept.astype(np.int64))))


def decode_num_kept(data: bytes | memoryview, count: int, top_k: int) -> Counts:
    """How many ids each position keeps, [T]."""
    found = np.cumsum(unzigzag(decode_numbers(data, count)))
    if count and not (int(found.min()) >= 0 and int(found.max()) <= top_k):
        raise ValueError(f"expected counts from 0 to {top_k}, found {found.min()} to {found.max()}")
    return found.astype(np.uint16)


def encode_tail(tail: NDArray[np.float64], step: float) -> bytes:
    """Log-masses of the tail, [T, n], rounded to ``step``, node by node.

    A log-mass is a smooth function of the node, so from the third node on, what is stored is how
    far it lies from the straight line through the two before. 0 stands for −inf (nothing left out).
    """
    if tail.ndim != 2:
        raise ValueError(f"tail_log_mass: expected [positions, nodes], found shape {tail.shape}")
    position = np.repeat(np.arange(tail.shape[0]), tail.shape[1])
    flat = tail.reshape(-1)
    allowed = ~np.isnan(flat) & (flat <= _MOST_STEPS * step / 4)
    require_all(allowed, flat, "a log-mass, a number or −inf", position)
    is_empty_nT = np.isneginf(tail).T
    require_all(~_is_partly(is_empty_nT), tail[:, 0], "−inf at every node or at none")
    lowest = -_MOST_STEPS / 4  # less than any mass that a float has
    steps_nT = np.where(is_empty_nT, 0, np.maximum(np.rint(tail.T / step), lowest)).astype(np.int64)
    codes_nT = zigzag(steps_nT - _line_through(steps_nT)) + 1
    codes_nT[is_empty_nT] = 0
    return encode_numbers(codes_nT.reshape(-1))


def decode_tail(
    data: bytes | memoryview, num_positions: int, num_nodes: int, step: float
) -> NDArray[np.float64]:
    """Log-masses of the tail, [T, n]."""
    codes_nT = decode_numbers(data, num_positions * num_nodes).reshape(num_nodes, num_positions)
    is_empty_nT = codes_nT == 0
    if _is_partly(is_empty_nT).any():
        raise ValueError("expected −inf at every node of a position or at none")
    steps_nT = np.where(is_empty_nT, 0, unzigzag(codes_nT - 1))
    for node in range(num_nodes):
        line_T = _next_on_line(steps_nT[:node])
        steps_nT[node] += np.where(is_empty_nT[node], 0, line_T)
        if (np.abs(steps_nT[node]) > _MOST_STEPS).any():
            raise ValueError(f"expected at most {_MOST_STEPS} steps, found more at node {node}")
    tail_nT = steps_nT * step
    tail_nT[is_empty_nT] = -np.inf
    return np.ascontiguousarray(tail_nT.T)


def encode_next_logprob(next_logprob: Floats, expected: NDArray[np.float64], step: float) -> bytes:
    """Log-probability of the next token, [T], rounded to ``step``, as it differs from the expected.

    ``expected``, [T], is what the kept entries tell of it.
    """
    _require_1d(next_logprob, "next_logprob")
    # A log-softmax in float32 may end a rounding error above 0.
    allowed = (next_logprob >= MIN_LOGPROB) & (next_logprob <= 1e-3)
    require_all(allowed, next_logprob, f"a log-probability from {MIN_LOGPROB} to 0")
    steps_T = np.rint(np.minimum(next_logprob, 0).astype(np.float64) / step).astype(np.int64)
    return encode_numbers(zigzag(steps_T - np.rint(expected / step).astype(np.int64)))


def decode_next_logprob(
    data: bytes | memoryview, expected: NDArray[np.float64], step: float
) -> Floats:
    """Log-probability of the next token, [T]."""
    steps_T = unzigzag(decode_numbers(data, len(expected)))
    steps_T += np.rint(expected / step).astype(np.int64)
    if len(steps_T) and not (MIN_LOGPROB / step <= int(steps_T.min()) <= int(steps_T.max()) <= 0):
        raise ValueError(f"expected log-probabilities from {MIN_LOGPROB} to 0")
    values: Floats = (steps_T * step).astype(np.float32)
    return values


def encode_sketch(
    sketch: Floats, dtype: SketchDtype, *, num_states: int = 1
) -> tuple[bytes, bytes]:
    """Sketches, [T, d], and with int8 a scale for each position, [T]: off by at most scale/2.

    A scale is the upper half of a float32, rounded up so that no level exceeds 127. Errors name the
    position of the row, which has ``num_states`` sketches.
    """
    if sketch.ndim != 2:
        raise ValueError(f"sketch: expected [positions, dim], found shape {sketch.shape}")
    largest = np.abs(sketch).max(axis=1, initial=0.0).astype(np.float32)
    limit = {"int8": 1e38, "float16": 65_504.0, "float32": np.finfo(np.float32).max}[dtype]
    position = np.arange(len(largest)) // num_states
    require_all(largest <= limit, largest, f"finite numbers up to {limit:g}", position)
    if dtype != "int8":
        return _to_planes(sketch.astype(_SKETCH_TYPES[dtype])), b""
    bits = np.where(largest < _TINY, 0, largest / 127).astype(np.float32).view(np.uint32)
    upper = ((bits.astype(np.uint64) + 0xFFFF) >> 16).astype("<u2")
    scale = _float_of_upper(upper).astype(np.float64)
    levels = np.rint(sketch / np.where(scale == 0, np.inf, scale)[:, None]).astype(np.int8)
    return zstd_cells.compress(levels.tobytes()), _to_planes(upper)


def decode_sketch(
    data: bytes | memoryview, scale: bytes | memoryview, shape: tuple[int, int], dtype: SketchDtype
) -> Floats:
    """Sketches, [T, d]."""
    count = shape[0] * shape[1]
    values: Floats
    if dtype != "int8":
        if len(scale):
            raise ValueError(f"expected no scales of {dtype}, found {len(scale)} bytes")
        planes = _from_planes(data, count, _SKETCH_TYPES[dtype])
        if not np.isfinite(planes).all():
            raise ValueError("expected finite numbers")
        values = planes.reshape(shape).astype(np.float32)
        return values
    levels = np.frombuffer(zstd_cells.decompress(data, count), np.int8)
    if count and int(levels.min()) < -127:
        raise ValueError("expected numbers from -127 to 127, found -128")
    scales = _float_of_upper(_from_planes(scale, shape[0], "<u2"))
    if not ((scales >= 0) & (scales <= _MAX_SCALE)).all():
        raise ValueError(f"expected scales from 0 to {_MAX_SCALE:g}, found others")
    values = levels.reshape(shape) * scales[:, None]
    return values


_SKETCH_TYPES = {"float16": "<f2", "float32": "<f4"}


def require_all(
    allowed: NDArray[np.bool_],
    values: NDArray[np.generic],
    expected: str,
    position: NDArray[np.int64] | None = None,
) -> None:
    """Raise ValueError that names the first position at which ``allowed`` is false."""
    if not allowed.all():
        index = int(np.argmin(allowed))
        where = index if position is None else int(position[index])
        raise ValueError(f"position {where}: expected {expected}, found {values[index]}")


def _steps(values: NDArray[np.int64]) -> NDArray[np.int64]:
    """Each value minus the one before; the first minus 0."""
    steps = values.copy()
    steps[1:] -= values[:-1]
    return steps


def _next_on_line(before: NDArray[np.int64]) -> NDArray[np.int64] | int:
    """What the nodes before, [nodes, T], lead one to expect of the next."""
    if len(before) < 2:
        return before[-1] if len(before) else 0
    line: NDArray[np.int64] = 2 * before[-1] - before[-2]
    return line


def _is_partly(is_empty_nT: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Where only some nodes say that nothing is left out, which no distribution does, [T]."""
    partly: NDArray[np.bool_] = is_empty_nT.any(axis=0) != is_empty_nT.all(axis=0)
    return partly


def _line_through(steps_nT: NDArray[np.int64]) -> NDArray[np.int64]:
    lines_nT = np.zeros_like(steps_nT)
    for node in range(len(steps_nT)):
        lines_nT[node] = _next_on_line(steps_nT[:node])
    return lines_nT


def _float_of_upper(upper: NDArray[np.uint16]) -> Floats:
    values: Floats = (upper.astype(np.uint32) << 16).view(np.float32)
    return values


def _to_planes(values: NDArray[np.generic]) -> bytes:
    width = values.dtype.itemsize
    planes = np.ascontiguousarray(values).reshape(-1).view(np.uint8).reshape(-1, width).T
    return zstd_cells.compress(planes.tobytes())


def _from_planes(data: bytes | memoryview, count: int, dtype: str) -> NDArray[Any]:
    width = np.dtype(dtype).itemsize
    planes = np.frombuffer(zstd_cells.decompress(data, count * width), np.uint8).reshape(
        width, count
    )
    return np.ascontiguousarray(planes.T).reshape(-1).view(dtype)


def _require_1d(array: NDArray[np.generic], name: str) -> None:
    if array.ndim != 1:
        raise ValueError(f"{name}: expected one dimension, found shape {array.shape}")
