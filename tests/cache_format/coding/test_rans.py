"""rANS: what comes back, how small it is, and what damaged bytes do."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cache_format.coding import rans
from cache_format.coding.bits import encode_numbers, with_length

_RNG = np.random.default_rng(0)


def _skewed(num_rows: int, rng: np.random.Generator) -> np.ndarray:
    """Weights [num_rows, 256] from nearly even to nearly one symbol."""
    exponents = np.linspace(0, 5, num_rows)[:, None]
    weights: np.ndarray = rng.random((num_rows, 256)) ** (1 + exponents * 4)
    return weights


def _tables(frequencies: np.ndarray) -> rans.Tables:
    """Of frequencies [K, S, 256], the classes being equally frequent."""
    shares = np.zeros((1, 256))
    shares[0, : len(frequencies)] = 1
    return rans.make_tables(rans.quantize_frequencies(shares)[0], frequencies)


def _fitted(num_classes: int, num_rows: int, rng: np.random.Generator) -> np.ndarray:
    """Frequencies [K, S, 256]."""
    return np.stack([rans.quantize_frequencies(_skewed(num_rows, rng)) for _ in range(num_classes)])


def _drawn(frequencies: np.ndarray, num_positions: int, rng: np.random.Generator) -> np.ndarray:
    """Classes and symbols [1 + S, N] with these frequencies, [K, S, 256]."""
    classes = rng.integers(0, len(frequencies), num_positions)
    slots = rng.integers(0, rans.TOTAL, (frequencies.shape[1], num_positions))
    ends = np.cumsum(frequencies.astype(int), 2)[classes]  # [N, S, 256]
    symbols = (ends <= slots.T[:, :, None]).sum(2).T
    return np.vstack([classes, symbols]).astype(np.uint8)


@given(
    num_classes=st.integers(1, 5),
    num_rows=st.integers(1, 9),
    num_positions=st.sampled_from([0, 1, 2, 7, 511, 512, 513, 1100]),
    rest=st.binary(max_size=40),
    seed=st.integers(0, 2**32 - 1),
)
@settings(deadline=None, max_examples=60)
def test_symbols_and_what_travels_along_round_trip(
    num_classes: int, num_rows: int, num_positions: int, rest: bytes, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    frequencies = _fitted(num_classes, num_rows, rng)
    tables = _tables(frequencies)
    symbols = _drawn(frequencies, num_positions, rng)
    found, travelled = rans.decode(rans.encode(symbols, tables, rest), num_positions, tables)
    np.testing.assert_array_equal(found, symbols)
    assert bytes(travelled) == rest


def test_the_rarest_and_the_only_symbol_round_trip() -> None:
    weights = np.zeros((2, 256))
    weights[0, [3, 200]] = 1.0, 1e9
    weights[1, 7] = 1.0
    frequencies = rans.quantize_frequencies(weights)
    assert frequencies[0, 3] == 1
    assert frequencies[1, 7] == rans.TOTAL
    tables = _tables(frequencies[None])
    symbols = np.array([[0] * 40, [3] * 40, [7] * 40], np.uint8)
    found, _ = rans.decode(rans.encode(symbols, tables, b""), 40, tables)
    np.testing.assert_array_equal(found, symbols)


def test_size_is_within_one_percent_of_the_entropy_and_a_byte_and_a_half_a_lane() -> None:
    """What travels in the lanes, 2 bytes each but for 4 in all, comes for nothing."""
    frequencies = _fitted(3, 64, _RNG)
    tables = _tables(frequencies)
    symbols = _drawn(frequencies, 4096, _RNG)
    p = frequencies.transpose(1, 0, 2) / rans.TOTAL
    bits = -np.log2(p[np.arange(64)[:, None], symbols[0], symbols[1:]]).sum()
    bits += 4096 * np.log2(3)
    rest = _RNG.bytes(2 * rans.MAX_LANES - 4)
    assert len(rans.encode(symbols, tables, rest)) <= 1.01 * bits / 8 + 1.5 * rans.MAX_LANES


def test_no_positions_take_a_few_bytes_and_what_travels_along() -> None:
    tables = _tables(_fitted(2, 3, _RNG))
    data = rans.encode(np.empty((4, 0), np.uint8), tables, b"rest")
    assert data == with_length(encode_numbers(np.empty(0, np.int64))) + with_length(b"rest")
    symbols, rest = rans.decode(data, 0, tables)
    assert symbols.shape == (4, 0)
    assert bytes(rest) == b"rest"


@pytest.mark.parametrize("size", [0, 30, 61])
def test_every_flipped_or_missing_byte_is_an_error_or_shows(size: int) -> None:
    frequencies = _fitted(2, 4, _RNG)
    tables = _tables(frequencies)
    symbols, rest = _drawn(frequencies, 30, _RNG), _RNG.bytes(size)
    data = rans.encode(symbols, tables, rest)
    num_refused = 0
    for index in range(len(data)):
        for damaged in (
            data[:index] + bytes([data[index] ^ 0x04]) + data[index + 1 :],
            data[:index] + data[index + 1 :],
            data[:index],
        ):
            try:
                found, travelled = rans.decode(damaged, 30, tables)
            except ValueError:
                num_refused += 1
            else:
                assert (found != symbols).any() or bytes(travelled) != rest
    assert num_refused > len(data)


def test_what_is_longer_than_its_symbols_is_refused() -> None:
    tables = _tables(_fitted(1, 4, _RNG))
    data = rans.encode(np.zeros((5, 30), np.uint8), tables, b"")
    with pytest.raises(ValueError, match="zeros after 0 bytes, found others"):
        rans.decode(data + b"\0\0", 30, tables)


def test_states_out_of_bounds_are_refused() -> None:
    """At the beginning, and in the end, where there are no words to change them."""
    weights = np.zeros((1, 256))
    weights[0, 7] = 1.0
    tables = _tables(rans.quantize_frequencies(weights)[None])
    for state, message in ((2**16 - 1, "states of 65536 or more"), (2**17, "states below 131072")):
        with pytest.raises(ValueError, match=message):
            rans.decode(with_length(encode_numbers(np.array([state]))), 1, tables)


def test_frequencies_are_proportional_and_never_zero_for_what_occurs() -> None:
    weights = _RNG.random((5, 256)) ** 30
    weights[:, 100:] = 0
    frequencies = rans.quantize_frequencies(weights)
    assert (frequencies.sum(1, dtype=int) == rans.TOTAL).all()
    assert ((frequencies > 0) == (weights > 0)).all()
    exact = weights / weights.sum(1, keepdims=True) * rans.TOTAL
    assert (np.abs(frequencies - exact) <= 2 + 100 / rans.TOTAL * exact).all()


@pytest.mark.parametrize("weights", [np.zeros((1, 256)), np.full((1, 256), np.inf)])
def test_rows_without_a_finite_weight_are_refused(weights: np.ndarray) -> None:
    with pytest.raises(ValueError, match="positive weight"):
        rans.quantize_frequencies(weights)


def test_tables_of_another_shape_or_sum_are_refused() -> None:
    shares = np.zeros(256, np.uint16)
    shares[0] = rans.TOTAL
    even = np.full((1, 3, 256), 64, np.uint16)
    rans.make_tables(shares, even)
    with pytest.raises(ValueError, match="those of classes and of rows of symbols in each"):
        rans.make_tables(shares, even[0])
    for wrong in (shares // 2, even[0, 0]):
        with pytest.raises(ValueError, match=r"sum of 16384|expected 1 classes"):
            rans.make_tables(wrong, even)
    with pytest.raises(ValueError, match="sum of 16384"):
        rans.make_tables(shares, even * np.array([1, 1, 2], np.uint16)[:, None])
    with pytest.raises(ValueError, match="expected 2 classes, found others"):
        rans.make_tables(shares, np.repeat(even, 2, 0))


def test_symbols_without_a_frequency_are_refused() -> None:
    weights = np.zeros((1, 256))
    weights[0, :2] = 1
    tables = _tables(rans.quantize_frequencies(weights)[None])
    with pytest.raises(ValueError, match="positive frequency"):
        rans.encode(np.array([[0] * 3, [2] * 3], np.uint8), tables, b"")
