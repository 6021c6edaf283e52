"""Coefficients: what comes back, how small it is, and what damaged bytes do."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cache_format.coding import rans
from cache_format.coding.coefficients import MAX_VALUE, CoefficientCode, fit_code


def _drawn(spreads: np.ndarray, num_positions: int, seed: int) -> np.ndarray:
    """Rounded Laplacian numbers of these spreads, [P, J]."""
    rng = np.random.default_rng(seed)
    return np.rint(rng.laplace(0.0, spreads, (num_positions, len(spreads)))).astype(np.int64)


SPREADS = np.geomspace(20, 0.05, 90)
CODE = fit_code(_drawn(SPREADS, 3000, 1))


@given(num_positions=st.integers(0, 700), seed=st.integers(0, 2**32 - 1))
@settings(deadline=None, max_examples=30)
def test_coefficients_round_trip(num_positions: int, seed: int) -> None:
    values = _drawn(SPREADS, num_positions, seed)
    found = CODE.decode(CODE.encode(values), num_positions)
    assert found.dtype == np.int16
    np.testing.assert_array_equal(found, values)


@given(data=st.data())
@settings(deadline=None, max_examples=60)
def test_any_16_bit_coefficients_round_trip(data: st.DataObject) -> None:
    edge = st.sampled_from([0, 1, -1, 2, -2, 126, 127, 128, -127, -128, MAX_VALUE, -MAX_VALUE])
    rows = st.lists(edge, min_size=len(SPREADS), max_size=len(SPREADS))
    values = np.array(data.draw(st.lists(rows, min_size=1, max_size=3)))
    np.testing.assert_array_equal(CODE.decode(CODE.encode(values), len(values)), values)


def test_size_is_within_four_percent_of_the_entropy() -> None:
    """Of the coefficients, one component at a time; 2 bytes for each of 512 lanes come on top."""
    values = _drawn(SPREADS, 4096, 2)
    num_bits = 0.0
    for component in values.T:
        p = np.unique(component, return_counts=True)[1] / len(values)
        num_bits -= (p * np.log2(p)).sum() * len(values)
    assert len(CODE.encode(values)) <= 1.04 * num_bits / 8 + 2 * rans.MAX_LANES


def test_prices_add_up_to_the_size() -> None:
    """But for the 2 bytes of each lane, and for what is beyond a limit, whose price is a guess."""
    values = _drawn(SPREADS, 4096, 2)
    prices = CODE.prices()
    assert prices.shape == (len(SPREADS), 255)
    index = np.clip(values, -127, 127) + 127
    num_bytes = float(prices[np.arange(len(SPREADS)), index].sum()) / 8
    assert num_bytes == pytest.approx(len(CODE.encode(values)) - 2 * rans.MAX_LANES, rel=0.02)
    assert (prices[45:, 127] == prices[45:].min(1)).all()


def test_few_coefficients_are_at_a_limit() -> None:
    at_limit = np.abs(_drawn(SPREADS, 3000, 1)) >= CODE.limits
    assert (at_limit.mean(0) <= 0.01).all()


@pytest.mark.parametrize("value", [MAX_VALUE + 1, -MAX_VALUE - 1])
def test_larger_coefficients_are_refused(value: int) -> None:
    with pytest.raises(ValueError, match="at most ±32767"):
        CODE.encode(np.full((1, len(SPREADS)), value))


def test_every_damaged_byte_is_an_error_or_other_coefficients() -> None:
    values = _drawn(SPREADS, 20, 3)
    data = CODE.encode(values)
    num_refused = 0
    for index in range(len(data)):
        for damaged in (
            data[:index] + bytes([data[index] ^ 0x04]) + data[index + 1 :],
            data[:index] + data[index + 1 :],
            data[:index],
            data + data[index : index + 1],
        ):
            try:
                found = CODE.decode(damaged, 20)
            except ValueError:
                num_refused += 1
            else:
                assert (found != values).any()
    assert num_refused > 3 * len(data)


@pytest.mark.parametrize("limits", [[], [0], [128], [1, 2]])
def test_limits_out_of_bounds_or_order_are_refused(limits: list[int]) -> None:
    with pytest.raises(ValueError, match="limits: expected numbers"):
        CoefficientCode(np.array(limits, np.uint8), CODE.frequencies[: len(limits)])


def test_frequencies_of_other_symbols_are_refused() -> None:
    with pytest.raises(ValueError, match="frequencies: expected"):
        CoefficientCode(CODE.limits, CODE.frequencies[:-1])
    with pytest.raises(ValueError, match=r"frequencies: expected \d+ symbols"):
        CoefficientCode(CODE.limits, CODE.frequencies[::-1])
    frequencies = CODE.frequencies.copy()
    frequencies[-1, frequencies[-1].argmax()] -= 1
    with pytest.raises(ValueError, match="sum of 16384"):
        CoefficientCode(CODE.limits, frequencies)
