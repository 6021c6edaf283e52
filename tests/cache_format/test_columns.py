"""Round trips of every column within the stated bounds, and what encoders and decoders refuse."""

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from cache_format import columns

STEPS = st.sampled_from([1.0, 1 / 8, 1 / 16, 1 / 256])
FINITE = st.floats(-(2.0**100), 2.0**100, width=32)


@st.composite
def _ragged(draw: st.DrawFn, largest: float) -> tuple[np.ndarray, np.ndarray]:
    """Counts of some positions, and for each position rising gaps that begin at 0."""
    num_kept = draw(hnp.arrays(np.uint16, st.integers(0, 9), elements=st.integers(0, 6)))
    gaps: list[float] = []
    for count in num_kept.tolist():
        rest = st.floats(0, largest, width=32)
        tail = draw(st.lists(rest, min_size=max(count - 1, 0), max_size=max(count - 1, 0)))
        gaps += [0.0, *sorted(tail)][:count]
    return num_kept, np.array(gaps, np.float32)


@given(hnp.arrays(np.int32, st.integers(0, 50), elements=st.integers(0, 2**24 - 1)))
def test_ids_come_back(ids: np.ndarray) -> None:
    data = columns.encode_ids(ids, 2**24)
    assert len(data) == 3 * len(ids)
    np.testing.assert_array_equal(columns.decode_ids(data, len(ids)), ids)


def test_ids_are_three_planes_lowest_byte_first() -> None:
    assert columns.encode_ids(np.array([0x010203, 0x0A0B0C]), 2**24) == bytes.fromhex(
        "030c020b010a"
    )


@given(hnp.arrays(np.uint16, st.integers(0, 50)))
def test_counts_come_back(num_kept: np.ndarray) -> None:
    data = columns.encode_num_kept(num_kept, 65_535)
    np.testing.assert_array_equal(columns.decode_num_kept(data, len(num_kept)), num_kept)


@given(st.data(), STEPS)
def test_gaps_are_off_by_half_a_step_at_most(data: st.DataObject, step: float) -> None:
    num_kept, gaps = data.draw(_ragged(65_535 * step))
    encoded = columns.encode_gaps(gaps, num_kept, step)
    assert len(encoded) == 2 * len(gaps)
    decoded = columns.decode_gaps(encoded, num_kept, step)
    assert decoded.dtype == np.float32
    np.testing.assert_allclose(decoded, gaps, rtol=0, atol=step / 2)
    starts = (np.cumsum(num_kept, dtype=np.int64) - num_kept)[num_kept > 0]
    assert not decoded[starts].any()


def test_errors_of_gaps_do_not_add_up() -> None:
    gaps = (np.arange(1000) * 0.49 / 16).astype(np.float32)  # each step rounds down by half
    num_kept = np.array([1000], np.uint16)
    decoded = columns.decode_gaps(columns.encode_gaps(gaps, num_kept, 1 / 16), num_kept, 1 / 16)
    np.testing.assert_allclose(decoded, gaps, rtol=0, atol=1 / 32)


def test_gaps_are_differences_in_steps() -> None:
    data = columns.encode_gaps(
        np.array([0, 1.0, 17.0, 0, 0.5], np.float32), np.array([3, 0, 2], np.uint16), 1 / 16
    )
    assert data == bytes([0, 16, 0, 0, 8, 0, 0, 1, 0, 0])


@given(
    hnp.arrays(
        np.float32,
        hnp.array_shapes(min_dims=2, max_dims=2, max_side=6),
        elements=st.one_of(st.floats(-200, 127, width=32), st.just(-np.inf)),
    )
)
def test_tails_are_off_by_half_a_step_at_most(tail: np.ndarray) -> None:
    step = 1 / 256
    data = columns.encode_tail(tail, step)
    assert len(data) == 2 * tail.size
    decoded = columns.decode_tail(data, tail.shape[0], tail.shape[1], step)
    floor = -32_767 * step
    expected = np.where(np.isneginf(tail), tail, np.maximum(tail, floor))
    np.testing.assert_allclose(decoded, expected, rtol=0, atol=step / 2)


def test_tails_are_node_by_node_differences() -> None:
    tail = np.array([[0.5, 0.25], [-np.inf, -np.inf]], np.float32)
    # Steps [128, 64] and [-32768, -32768]; node by node, the second minus the first.
    assert columns.encode_tail(tail, 1 / 256) == bytes([128, 0, 192, 0, 0, 128, 255, 0])


@given(hnp.arrays(np.float32, st.integers(0, 30), elements=st.floats(-65504, 0, width=32)))
def test_next_logprobs_are_rounded_to_float16(next_logprob: np.ndarray) -> None:
    data = columns.encode_next_logprob(next_logprob)
    decoded = columns.decode_next_logprob(data, len(next_logprob))
    np.testing.assert_allclose(decoded, next_logprob, rtol=2**-11, atol=2**-25)


def test_next_logprob_a_rounding_error_above_zero_is_zero() -> None:
    data = columns.encode_next_logprob(np.array([3e-7], np.float32))
    assert columns.decode_next_logprob(data, 1).tolist() == [0.0]


@given(
    hnp.arrays(np.float32, hnp.array_shapes(min_dims=2, max_dims=2, max_side=6), elements=FINITE)
)
def test_sketches_are_off_by_half_their_scale_at_most(sketch: np.ndarray) -> None:
    levels, scale = columns.encode_sketch(sketch)
    decoded = columns.decode_sketch(levels, scale, (sketch.shape[0], sketch.shape[1]))
    bound = np.abs(sketch).max(axis=1, keepdims=True) / 254 * (1 + 1e-5) + 1e-30
    assert (np.abs(decoded.astype(np.float64) - sketch) <= bound).all()


def _floats(*values: float) -> np.ndarray:
    return np.array(values, np.float32)


KEPT = np.array([1, 2], np.uint16)


@pytest.mark.parametrize(
    ("encode", "message"),
    [
        (lambda: columns.encode_ids(np.array([1, 9, 40]), 40), "position 2: .*0 to 39, found 40"),
        (lambda: columns.encode_ids(np.array([1, -1]), 40), "position 1: .*found -1"),
        (lambda: columns.encode_ids(_floats(1.0), 40), "expected integers, found float32"),
        (lambda: columns.encode_ids(np.array([[1]]), 40), r"one dimension, found shape \(1, 1\)"),
        (lambda: columns.encode_num_kept(np.array([3, 6]), 5), "position 1: .*0 to 5, found 6"),
        (lambda: columns.encode_num_kept(np.array([-1]), 5), "position 0: .*found -1"),
        (lambda: columns.encode_num_kept(_floats(1.0), 5), "expected integers, found float32"),
        (lambda: columns.encode_gaps(_floats(0, 0, np.nan), KEPT, 1), "position 1: .*found nan"),
        (lambda: columns.encode_gaps(_floats(0, 0, np.inf), KEPT, 1), "position 1: .*found inf"),
        (lambda: columns.encode_gaps(_floats(0, 0, -1), KEPT, 1), "position 1: .*found -1"),
        (lambda: columns.encode_gaps(_floats(0, 1, 2), KEPT, 1), "position 1: .*first gap of 0"),
        (
            lambda: columns.encode_gaps(_floats(0, 2, 1), np.array([3], np.uint16), 1),
            "position 0: .*do not fall along the rank, found 1",
        ),
        (
            lambda: columns.encode_gaps(_floats(0, 0, 65_536), KEPT, 1),
            "position 1: .*at most 65535",
        ),
        (lambda: columns.encode_gaps(_floats(0, 0), KEPT, 1), "sum.num_kept. entries, found 2"),
        (lambda: columns.encode_tail(_floats(0), 1 / 256), r"\[positions, nodes\], found shape"),
        (lambda: columns.encode_tail(_floats(0, np.nan)[:, None], 1), "position 1: .*found nan"),
        (lambda: columns.encode_tail(_floats(0, np.inf)[:, None], 1), "position 1: .*found inf"),
        (lambda: columns.encode_tail(_floats(128)[:, None], 1 / 256), "position 0: .*found 128"),
        (lambda: columns.encode_next_logprob(_floats(0, np.nan)), "position 1: .*found nan"),
        (lambda: columns.encode_next_logprob(_floats(0, -65_505)), "position 1: .*found -65505"),
        (lambda: columns.encode_next_logprob(_floats(0.25)), "position 0: .*found 0.25"),
        (lambda: columns.encode_next_logprob(_floats(0)[:, None]), "one dimension"),
        (lambda: columns.encode_sketch(_floats(0, np.nan)[:, None]), "position 1: .*finite"),
        (lambda: columns.encode_sketch(_floats(0, np.inf)[:, None]), "position 1: .*finite"),
        (lambda: columns.encode_sketch(_floats(0)), r"\[positions, dim\], found shape"),
    ],
)
def test_encoders_refuse(encode: Callable[[], bytes], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        encode()


@pytest.mark.parametrize("extra", [-1, 1])
def test_decoders_refuse_other_lengths(extra: int) -> None:
    def data(expected: int) -> bytes:
        return bytes(expected + extra)

    decoders: list[Callable[[], object]] = [
        lambda: columns.decode_ids(data(6), 2),
        lambda: columns.decode_num_kept(data(4), 2),
        lambda: columns.decode_gaps(data(6), KEPT, 1.0),
        lambda: columns.decode_tail(data(12), 2, 3, 1.0),
        lambda: columns.decode_next_logprob(data(4), 2),
        lambda: columns.decode_sketch(data(6), bytes(8), (2, 3)),
        lambda: columns.decode_sketch(bytes(6), data(8), (2, 3)),
    ]
    for decode in decoders:
        with pytest.raises(ValueError, match=r"expected .* bytes, found"):
            decode()
