"""rANS: what comes back, how small it is, and what damaged bytes do."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cache_format.coding import rans

_RNG = np.random.default_rng(0)


def _skewed(num_rows: int, rng: np.random.Generator) -> np.ndarray:
    """Weights [num_rows, 256] from nearly even to nearly one symbol."""
    exponents = np.linspace(0, 5, num_rows)[:, None]
    weights: np.ndarray = rng.random((num_rows, 256)) ** (1 + exponents * 4)
    return weights


def _drawn(frequencies: np.ndarray, num_positions: int, rng: np.random.Generator) -> np.ndarray:
    """Symbols [S, N] with these frequencies."""
    slots = rng.integers(0, rans.TOTAL, (len(frequencies), num_positions))
    return np.stack(
        [
            np.searchsorted(np.cumsum(row.astype(int)), slot, side="right").astype(np.uint8)
            for row, slot in zip(frequencies, slots, strict=True)
        ]
    )


@given(
    num_rows=st.integers(1, 9),
    num_positions=st.sampled_from([1, 2, 7, 511, 512, 513, 1100]),
    seed=st.integers(0, 2**32 - 1),
)
@settings(deadline=None, max_examples=60)
def test_symbols_round_trip(num_rows: int, num_positions: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    frequencies = rans.quantize_frequencies(_skewed(num_rows, rng))
    tables = rans.make_tables(frequencies)
    symbols = _drawn(frequencies, num_positions, rng)
    data = rans.encode(symbols, tables)
    np.testing.assert_array_equal(rans.decode(data, num_positions, tables), symbols)


def test_the_rarest_and_the_only_symbol_round_trip() -> None:
    weights = np.zeros((2, 256))
    weights[0, [3, 200]] = 1.0, 1e9
    weights[1, 7] = 1.0
    tables = rans.make_tables(rans.quantize_frequencies(weights))
    assert tables.frequencies[0, 3] == 1
    assert tables.frequencies[1, 7] == rans.TOTAL
    symbols = np.array([[3] * 40, [7] * 40], np.uint8)
    np.testing.assert_array_equal(rans.decode(rans.encode(symbols, tables), 40, tables), symbols)


def test_size_is_within_one_percent_of_the_entropy_and_two_bytes_a_lane() -> None:
    frequencies = rans.quantize_frequencies(_skewed(64, _RNG))
    tables = rans.make_tables(frequencies)
    symbols = _drawn(frequencies, 4096, _RNG)
    p = frequencies / rans.TOTAL
    bits = -np.log2(np.take_along_axis(p, symbols.astype(int), 1)).sum()
    assert len(rans.encode(symbols, tables)) <= 1.01 * bits / 8 + 2 * rans.MAX_LANES


def test_no_positions_take_no_bytes() -> None:
    tables = rans.make_tables(rans.quantize_frequencies(_skewed(3, _RNG)))
    assert rans.encode(np.empty((3, 0), np.uint8), tables) == b""
    assert rans.decode(b"", 0, tables).shape == (3, 0)


def test_every_flipped_or_missing_byte_is_an_error_or_other_symbols() -> None:
    frequencies = rans.quantize_frequencies(_skewed(4, _RNG))
    tables = rans.make_tables(frequencies)
    symbols = _drawn(frequencies, 30, _RNG)
    data = rans.encode(symbols, tables)
    num_refused = 0
    for index in range(len(data)):
        for damaged in (
            data[:index] + bytes([data[index] ^ 0x10]) + data[index + 1 :],
            data[:index] + data[index + 1 :],
            data[:index],
        ):
            try:
                found = rans.decode(damaged, 30, tables)
            except ValueError:
                num_refused += 1
            else:
                assert (found != symbols).any()
    assert num_refused > 2 * len(data)


def test_what_is_longer_than_its_symbols_is_refused() -> None:
    tables = rans.make_tables(rans.quantize_frequencies(_skewed(4, _RNG)))
    data = rans.encode(np.zeros((4, 30), np.uint8), tables)
    with pytest.raises(ValueError, match="words, found"):
        rans.decode(data + b"\0\0", 30, tables)


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


@pytest.mark.parametrize("shape", [(1, 255), (256,)])
def test_tables_of_another_shape_or_sum_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="sum of 16384"):
        rans.make_tables(np.full(shape, 64, np.uint16))


def test_symbols_without_a_frequency_are_refused() -> None:
    weights = np.zeros((1, 256))
    weights[0, :2] = 1
    tables = rans.make_tables(rans.quantize_frequencies(weights))
    with pytest.raises(ValueError, match="positive frequency"):
        rans.encode(np.full((1, 3), 2, np.uint8), tables)
