"""Numbers to classes and raw bits and back, and what is not what they were written as."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from cache_format.coding import bits, zstd_cells

LARGEST = 2**32 - 1
EDGES = [2**n + step for n in range(1, 32) for step in (-1, 0, 1)] + [0, LARGEST]
NUMBERS = st.one_of(st.integers(0, LARGEST), st.sampled_from(EDGES))


def _cell(classes: list[int], raw: bytes) -> bytes:
    return bits.with_length(zstd_cells.compress(bytes(classes))) + raw


@given(st.lists(NUMBERS, max_size=40))
def test_numbers_round_trip(numbers: list[int]) -> None:
    data = bits.encode_numbers(np.array(numbers, np.int64))
    assert bits.decode_numbers(data, len(numbers)).tolist() == numbers


@given(st.lists(NUMBERS, min_size=1, max_size=40), st.binary(min_size=1, max_size=3))
def test_extra_or_missing_bytes_are_refused(numbers: list[int], more: bytes) -> None:
    data = bits.encode_numbers(np.array(numbers, np.int64))
    for wrong in [data + more, *(data[:length] for length in range(len(data)))]:
        with pytest.raises(ValueError, match=r"expected|zstd"):
            bits.decode_numbers(wrong, len(numbers))
    for count in (len(numbers) - 1, len(numbers) + 1):
        with pytest.raises(ValueError, match="expected a frame of"):
            bits.decode_numbers(data, count)


def test_encoded_numbers_match_bytes_worked_out_by_hand() -> None:
    """0 and 1 have no raw bits; 6 = 110b has 10b, 9 = 1001b has 001b: 001'10b is 6."""
    data = bits.encode_numbers(np.array([0, 6, 1, 9]))
    assert data == _cell([0, 3, 1, 4], bytes([0b001_10]))


def test_a_width_class_above_32_is_refused() -> None:
    with pytest.raises(ValueError, match="classes of at most 32, found 33"):
        bits.decode_numbers(_cell([33], bytes(4)), 1)
    assert bits.decode_numbers(_cell([32], b"\xff\xff\xff\x7f"), 1).tolist() == [LARGEST]


def test_unused_final_bits_must_be_zero() -> None:
    assert bits.decode_numbers(_cell([3], b"\x03"), 1).tolist() == [7]
    with pytest.raises(ValueError, match="zero bits after the last raw bits"):
        bits.decode_numbers(_cell([3], b"\x07"), 1)


@given(st.lists(st.tuples(st.integers(0, 2**32 - 1), st.integers(0, 32)), max_size=60))
def test_bit_fields_of_every_width_round_trip(fields: list[tuple[int, int]]) -> None:
    """They are the bits of one long number, lowest first."""
    widths = np.array([width for _, width in fields], np.uint8)
    values = np.array([value % 2**width for value, width in fields], np.uint64)
    data = bits.pack(values, widths)
    number, place = 0, 0
    for value, width in zip(values.tolist(), widths.tolist(), strict=True):
        number, place = number | value << place, place + width
    assert data == number.to_bytes(-(-place // 8), "little")
    np.testing.assert_array_equal(bits.unpack(data, widths), values)
    with pytest.raises(ValueError, match=f"expected {len(data)} bytes of raw bits"):
        bits.unpack(data + b"\0", widths)


@pytest.mark.parametrize("width", range(33))
def test_the_largest_value_of_each_width_round_trips(width: int) -> None:
    widths = np.full(9, width, np.uint8)
    values = np.full(9, 2**width - 1, np.uint64)
    np.testing.assert_array_equal(bits.unpack(bits.pack(values, widths), widths), values)


@given(hnp.arrays(np.int64, st.integers(0, 50), elements=NUMBERS))
def test_bit_lengths_equal_those_of_python(values: np.ndarray) -> None:
    expected = [value.bit_length() for value in values.tolist()]
    assert bits.bit_lengths(values).tolist() == expected


@given(hnp.arrays(np.int64, st.integers(0, 50), elements=st.integers(-(2**31), 2**31 - 1)))
def test_zigzag_coded_signed_numbers_round_trip(values: np.ndarray) -> None:
    stored = bits.zigzag(values)
    assert stored.tolist() == [2 * v if v >= 0 else -2 * v - 1 for v in values.tolist()]
    np.testing.assert_array_equal(bits.unzigzag(stored), values)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "expected a length in 4 bytes, found 0 bytes"),
        (b"\0\0\0", "expected a length in 4 bytes, found 3 bytes"),
        (b"\2\0\0\0a", "expected 6 bytes, found 5"),
        (b"\xff\xff\xff\xffa", "expected 4294967299 bytes, found 5"),
    ],
)
def test_a_length_beyond_the_data_is_refused(data: bytes, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        bits.split_length(data)


def test_a_length_prefix_separates_data_from_the_rest() -> None:
    first, rest = bits.split_length(bits.with_length(b"ab") + b"cd")
    assert (bytes(first), bytes(rest)) == (b"ab", b"cd")
