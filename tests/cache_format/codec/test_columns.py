"""Round trips of every column within the stated bounds, and what encoders and decoders refuse."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from cache_format.codec import columns
from cache_format.coding import zstd_cells
from cache_format.coding.bits import encode_numbers, zigzag
from cache_format.tables.vocabulary_ranks import RankTable

STEPS = st.sampled_from([1.0, 1 / 8, 1 / 64, 1 / 1024])
RANKS = RankTable(np.roll(np.arange(40, dtype=np.int32), 7))
NODES = hnp.array_shapes(min_dims=2, max_dims=2, max_side=6)


@given(hnp.arrays(np.int32, st.integers(0, 50), elements=st.integers(0, 39)))
def test_token_ids_round_trip_as_frequency_ranks(ids: np.ndarray) -> None:
    data = columns.encode_token_ids(ids, RANKS)
    assert data == encode_numbers(RANKS.ranks_by_id[ids])
    np.testing.assert_array_equal(columns.decode_token_ids(data, len(ids), RANKS), ids)


@given(hnp.arrays(np.uint16, st.integers(0, 50)))
def test_kept_counts_round_trip(num_kept: np.ndarray) -> None:
    data = columns.encode_num_kept(num_kept, 65_535)
    np.testing.assert_array_equal(columns.decode_num_kept(data, len(num_kept), 65_535), num_kept)


def test_kept_counts_are_stored_as_differences() -> None:
    data = columns.encode_num_kept(np.array([5, 5, 0, 3], np.uint16), 5)
    assert data == encode_numbers(np.array([10, 0, 9, 6]))  # 5, 0, −5, 3, signed


@given(hnp.arrays(np.bool_, st.integers(1, 40)))
def test_context_round_trips_and_takes_nothing_where_there_is_none(is_context: np.ndarray) -> None:
    data = columns.encode_context(is_context)
    found = columns.decode_context(data, len(is_context))
    if is_context.any():
        np.testing.assert_array_equal(found, is_context)
    else:
        assert (data, found) == (b"", None)


def test_encoded_context_matches_bytes_worked_out_by_hand() -> None:
    """Positions 0, 2 and 9 of 12: bits 0 and 2 of the first byte, bit 1 of the second."""
    is_context = np.isin(np.arange(12), [0, 2, 9])
    assert zstd_cells.decompress(columns.encode_context(is_context), 2) == bytes([0b101, 0b10])
    assert columns.encode_context(None) == b""


@given(
    hnp.arrays(np.float64, NODES, elements=st.floats(-2000, 127)),
    STEPS,
    st.integers(1, 5),
)
def test_tails_round_trip_within_half_a_step(tail: np.ndarray, step: float, each: int) -> None:
    tail[::each] = -np.inf
    data = columns.encode_tail(tail, step)
    decoded = columns.decode_tail(data, tail.shape[0], tail.shape[1], step)
    np.testing.assert_allclose(decoded, tail, rtol=0, atol=step / 2)


def test_tails_are_stored_as_residuals_of_the_line_through_two_nodes() -> None:
    """In steps 8, 5, 1; and a position where nothing is left out."""
    tail = np.array([[8, 5, 1], [-np.inf] * 3]) / 64
    codes = [[1 + 16, 0], [1 + 5, 0], [1 + 1, 0]]  # 8; −3; 1 − 2 = −1
    assert columns.encode_tail(tail, 1 / 64) == encode_numbers(np.array(codes).reshape(-1))


def test_a_tail_empty_at_some_nodes_only_is_refused() -> None:
    tail = np.array([[-1.0, -2.0], [-np.inf, -2.0]])
    with pytest.raises(ValueError, match="position 1: expected −inf at every node or at none"):
        columns.encode_tail(tail, 1 / 64)
    with pytest.raises(ValueError, match="expected −inf at every node of a position or at none"):
        columns.decode_tail(encode_numbers(np.array([3, 0, 3, 3])), 2, 2, 1 / 64)


@given(st.data(), STEPS)
def test_next_logprobs_round_trip_within_half_a_step(data: st.DataObject, step: float) -> None:
    values = data.draw(
        hnp.arrays(np.float32, st.integers(0, 30), elements=st.floats(-65504, 0, width=32))
    )
    expected = data.draw(hnp.arrays(np.float64, len(values), elements=st.floats(-30, 0)))
    encoded = columns.encode_next_logprob(values, expected, step)
    decoded = columns.decode_next_logprob(encoded, expected, step)
    np.testing.assert_allclose(decoded, values, rtol=1e-7, atol=step / 2)


def test_encoded_next_logprobs_match_values_worked_out_by_hand() -> None:
    """−20 steps where −24 were expected is 4, −25 is −1."""
    values, expected = _floats(-20 / 64, -25 / 64), np.array([-24.4, -24.4]) / 64
    data = columns.encode_next_logprob(values, expected, 1 / 64)
    assert data == encode_numbers(np.array([8, 1]))


def test_next_logprob_a_rounding_error_above_zero_is_zero() -> None:
    data = columns.encode_next_logprob(np.array([3e-7], np.float32), np.zeros(1), 1 / 64)
    assert columns.decode_next_logprob(data, np.zeros(1), 1 / 64).tolist() == [0.0]


@given(hnp.arrays(np.float32, NODES, elements=st.floats(-(2.0**100), 2.0**100, width=32)))
def test_int8_sketches_round_trip_within_half_their_scale(sketch: np.ndarray) -> None:
    levels, scale = columns.encode_sketch(sketch, "int8")
    decoded = columns.decode_sketch(levels, scale, sketch.shape, "int8")
    bound = np.abs(sketch).max(axis=1, keepdims=True) / 254 * (1 + 2.0**-7) + 1e-30
    assert (np.abs(decoded.astype(np.float64) - sketch) <= bound).all()


@pytest.mark.parametrize(("dtype", "width"), [("float16", 16), ("float32", 32)])
@given(st.data())
def test_floating_point_sketches_round_trip_exactly(
    dtype: Any, width: Any, data: st.DataObject
) -> None:
    elements = st.floats(width=width, allow_nan=False, allow_infinity=False)
    sketch = data.draw(hnp.arrays(np.dtype(dtype), NODES, elements=elements)).astype(np.float32)
    planes, scale = columns.encode_sketch(sketch, dtype)
    assert scale == b""
    np.testing.assert_array_equal(columns.decode_sketch(planes, scale, sketch.shape, dtype), sketch)


def test_float16_sketches_store_the_low_byte_plane_first() -> None:
    planes, _ = columns.encode_sketch(np.array([[1.0, -2.0]], np.float32), "float16")
    assert zstd_cells.decompress(planes, 4) == bytes.fromhex("00003cc0")  # 3c00 and c000


def test_an_encoded_int8_sketch_matches_bytes_worked_out_by_hand() -> None:
    """1/127 = 2⁻⁷ · 1.00787…, in 8 bits rounded up 2⁻⁷ · 130/128."""
    levels, scale = columns.encode_sketch(np.array([[1.0, -0.5, 0.0]], np.float32), "int8")
    upper = int.from_bytes(zstd_cells.decompress(scale, 2), "little")
    assert upper == (127 - 7) << 7 | 2
    assert zstd_cells.decompress(levels, 3) == bytes([126, 256 - 63, 0])


def _floats(*values: float) -> np.ndarray:
    return np.array(values, np.float32)


def _tail(*values: float) -> np.ndarray:
    return np.array(values)[:, None]


ZEROS = np.zeros(2)


@pytest.mark.parametrize(
    ("encode", "message"),
    [
        (lambda: columns.encode_token_ids(np.array([1, 9, 40]), RANKS), "position 2: .*found 40"),
        (lambda: columns.encode_token_ids(np.array([1, -1]), RANKS), "position 1: .*found -1"),
        (lambda: columns.encode_token_ids(_floats(1), RANKS), "expected integers, found float32"),
        (lambda: columns.encode_token_ids(np.array([[1]]), RANKS), r"one dimension, .*\(1, 1\)"),
        (lambda: columns.encode_num_kept(np.array([3, 6]), 5), "position 1: .*0 to 5, found 6"),
        (lambda: columns.encode_num_kept(np.array([-1]), 5), "position 0: .*found -1"),
        (lambda: columns.encode_num_kept(_floats(1.0), 5), "expected integers, found float32"),
        (lambda: columns.encode_tail(np.zeros(1), 1), r"\[positions, nodes\], found shape"),
        (lambda: columns.encode_tail(_tail(0, np.nan), 1), "position 1: .*found nan"),
        (lambda: columns.encode_tail(_tail(0, np.inf), 1), "position 1: .*found inf"),
        (lambda: columns.encode_tail(_tail(2.0**29), 1), "position 0: .*found 5368"),
        (
            lambda: columns.encode_next_logprob(_floats(0, np.nan), ZEROS, 1),
            "position 1: .*found nan",
        ),
        (
            lambda: columns.encode_next_logprob(_floats(0, -65_505), ZEROS, 1),
            "position 1: .*found -65505",
        ),
        (lambda: columns.encode_next_logprob(_floats(0.25, 0), ZEROS, 1), "position 0: .*0.25"),
        (lambda: columns.encode_next_logprob(_floats(0)[:, None], ZEROS, 1), "one dimension"),
        (
            lambda: columns.encode_sketch(_floats(0, np.nan)[:, None], "int8"),
            "position 1: .*finite",
        ),
        (
            lambda: columns.encode_sketch(_floats(0, np.inf)[:, None], "int8"),
            "position 1: .*finite",
        ),
        (lambda: columns.encode_sketch(_floats(65_600)[:, None], "float16"), "up to 65504"),
        (
            lambda: columns.encode_sketch(_floats(np.inf)[:, None], "float32"),
            "position 0: .*finite",
        ),
        (
            lambda: columns.encode_sketch(_floats(0, 0, np.inf)[:, None], "int8", num_states=2),
            "position 1: .*finite",
        ),
        (lambda: columns.encode_sketch(_floats(0), "int8"), r"\[positions, dim\], found shape"),
    ],
)
def test_encoders_refuse_invalid_values_and_types(
    encode: Callable[[], bytes], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        encode()


def _numbers(*values: int) -> bytes:
    return encode_numbers(np.array(values))


def _signed(*values: int) -> bytes:
    return encode_numbers(zigzag(np.array(values)))


def _context(*values: int) -> bytes:
    return zstd_cells.compress(bytes(values))


def _sketch(levels: list[int], upper: int) -> tuple[bytes, bytes]:
    scale = np.full(1, upper, "<u2").view(np.uint8).tobytes()
    return zstd_cells.compress(np.array(levels, np.int8).tobytes()), zstd_cells.compress(scale)


@pytest.mark.parametrize(
    ("decode", "message"),
    [
        (lambda: columns.decode_token_ids(_numbers(39, 40), 2, RANKS), "ranks below 40, found 40"),
        (lambda: columns.decode_context(_context(0, 0), 12), "expected a bit for some of the pos"),
        (lambda: columns.decode_context(_context(0, 0x10), 12), "no bits after them"),
        (lambda: columns.decode_context(_context(1, 0x80), 12), "no bits after them"),
        (lambda: columns.decode_context(b"\0", 12), "zstd"),
        (lambda: columns.decode_context(_context(1, 0) + b"\0", 12), "zstd"),
        (lambda: columns.decode_num_kept(_signed(5, 1), 2, 5), "counts from 0 to 5, found 5 to 6"),
        (lambda: columns.decode_num_kept(_signed(5, -6), 2, 5), "counts from 0 to 5, found -1 to"),
        (lambda: columns.decode_tail(_numbers(2**31 + 9), 1, 1, 1.0), "found more at node 0"),
        (lambda: columns.decode_next_logprob(_signed(1), np.zeros(1), 1.0), "from -65504.0 to 0"),
        (
            lambda: columns.decode_next_logprob(_signed(-65_505), np.zeros(1), 1.0),
            "from -65504.0 to 0",
        ),
        (lambda: columns.decode_sketch(*_sketch([-128], 0), (1, 1), "int8"), "found -128"),
        # Upper halves of not a number, infinity, −1 and 3e38.
        *(
            (
                lambda upper=upper: columns.decode_sketch(*_sketch([0], upper), (1, 1), "int8"),
                "expected scales from 0",
            )
            for upper in (0x7FC0, 0x7F80, 0xBF80, 0x7F60)
        ),
        (
            lambda: columns.decode_sketch(zstd_cells.compress(b"\0\x7c"), b"", (1, 1), "float16"),
            "expected finite numbers",
        ),
        (
            lambda: columns.decode_sketch(
                zstd_cells.compress(b"\0\0\xc0\x7f"), b"", (1, 1), "float32"
            ),
            "expected finite numbers",
        ),
        (
            lambda: columns.decode_sketch(zstd_cells.compress(bytes(2)), b"x", (1, 1), "float16"),
            "expected no scales of float16, found 1 bytes",
        ),
    ],
)
def test_decoders_refuse_values_out_of_range(decode: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        decode()


def test_decoders_accept_the_extreme_allowed_values() -> None:
    is_context = columns.decode_context(_context(0, 0x08), 12)
    assert is_context is not None
    assert np.flatnonzero(is_context).tolist() == [11]
    assert columns.decode_num_kept(_signed(5, -5), 2, 5).tolist() == [5, 0]
    assert columns.decode_next_logprob(_signed(-65_504), np.zeros(1), 1.0).tolist() == [-65_504]
    assert columns.decode_sketch(*_sketch([-127], 0x3F80), (1, 1), "int8").tolist() == [[-127]]


@pytest.mark.parametrize("extra", [-1, 1])
def test_decoders_refuse_cells_of_another_number_of_values(extra: int) -> None:
    count = 4 + extra
    planes, scale = columns.encode_sketch(np.ones((2, 2), np.float32), "int8")
    decoders: list[Callable[[], object]] = [
        lambda: columns.decode_token_ids(_numbers(1, 2, 3, 4), count, RANKS),
        lambda: columns.decode_context(_context(1, 2, 3, 4), 8 * count),
        lambda: columns.decode_num_kept(_numbers(1, 2, 3, 4), count, 5),
        lambda: columns.decode_tail(_numbers(1, 2, 3, 4), count, 1, 1.0),
        lambda: columns.decode_next_logprob(_numbers(1, 2, 3, 4), np.zeros(count), 1.0),
        lambda: columns.decode_sketch(planes, scale, (2, 2 + extra), "int8"),
        lambda: columns.decode_sketch(planes, scale[:extra], (2, 2), "int8"),
    ]
    for decode in decoders:
        with pytest.raises(ValueError, match=r"expected a frame|zstd"):
            decode()
