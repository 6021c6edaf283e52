"""Coefficients: what comes back, how small it is, and what damaged bytes do."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cache_format.coding import bits, rans
from cache_format.coding.coefficients import MAX_VALUE, CoefficientCode
from cache_format.coding.fitted_code import fit_code


def _drawn(spreads: np.ndarray, num_positions: int, seed: int) -> np.ndarray:
    """Rounded Laplacian numbers of these spreads, [P, J]."""
    rng = np.random.default_rng(seed)
    return np.rint(rng.laplace(0.0, spreads, (num_positions, len(spreads)))).astype(np.int64)


def _mixed(spreads: np.ndarray, num_positions: int, seed: int) -> np.ndarray:
    """Of half the positions, four times as large as of the others."""
    rng = np.random.default_rng(seed)
    scale = rng.choice([0.5, 2.0], (num_positions, 1))
    return np.rint(scale * rng.laplace(0.0, spreads, (num_positions, len(spreads)))).astype(int)


SPREADS = np.geomspace(20, 0.05, 90)
CODE = fit_code(_drawn(SPREADS, 3000, 1))
OF_CLASSES = fit_code(_mixed(SPREADS, 3000, 1), 4)


def _sum_of_entropies(values: np.ndarray) -> float:
    """Bits of [P, J], each component by itself."""
    num_bits = 0.0
    for component in values.T:
        p = np.unique(component, return_counts=True)[1] / len(values)
        num_bits -= float((p * np.log2(p)).sum()) * len(values)
    return num_bits


@given(num_positions=st.integers(0, 700), seed=st.integers(0, 2**32 - 1))
@settings(deadline=None, max_examples=30)
def test_coefficients_round_trip(num_positions: int, seed: int) -> None:
    values = _drawn(SPREADS, num_positions, seed)
    for code in (CODE, OF_CLASSES):
        found = code.decode(code.encode(values), num_positions)
        assert found.dtype == np.int16
        np.testing.assert_array_equal(found, values)


@given(data=st.data())
@settings(deadline=None, max_examples=60)
def test_any_16_bit_coefficients_round_trip(data: st.DataObject) -> None:
    edge = st.sampled_from([0, 1, -1, 2, -2, 126, 127, 128, -127, -128, MAX_VALUE, -MAX_VALUE])
    rows = st.lists(edge, min_size=len(SPREADS), max_size=len(SPREADS))
    values = np.array(data.draw(st.lists(rows, min_size=1, max_size=3)))
    for code in (CODE, OF_CLASSES):
        np.testing.assert_array_equal(code.decode(code.encode(values), len(values)), values)


def test_size_is_within_four_percent_of_the_entropy() -> None:
    """Of the coefficients, one component at a time; a byte for each of 512 lanes comes on top."""
    values = _drawn(SPREADS, 4096, 2)
    assert len(CODE.encode(values)) <= 1.04 * _sum_of_entropies(values) / 8 + rans.MAX_LANES


def test_classes_take_fewer_bytes_where_positions_differ() -> None:
    values = _mixed(SPREADS, 4096, 2)
    of_one = fit_code(_mixed(SPREADS, 3000, 1))
    assert (of_one.num_classes, OF_CLASSES.num_classes) == (1, 4)
    size = len(OF_CLASSES.encode(values))
    assert size < 0.96 * len(of_one.encode(values))
    assert size < 0.98 * _sum_of_entropies(values) / 8


def test_the_widest_components_alone_have_raw_bits() -> None:
    means = np.abs(_drawn(SPREADS, 3000, 1)).mean(0)
    assert CODE.num_raw_bits == 16
    assert means[16] >= 2
    assert fit_code(_drawn(SPREADS[30:], 3000, 1)).num_raw_bits == 5
    assert fit_code(_drawn(SPREADS[40:], 3000, 1)).num_raw_bits == 0


@pytest.mark.parametrize(("num_positions", "num_classes"), [(1, 1), (255, 1), (256, 2), (600, 4)])
def test_few_positions_have_few_classes(num_positions: int, num_classes: int) -> None:
    assert fit_code(_mixed(SPREADS, num_positions, 5), 4).num_classes == num_classes


def test_a_class_of_no_position_is_left_out() -> None:
    """Positions that are all alike are of one class."""
    code = fit_code(np.ones((1000, 3), int), 4)
    assert code.num_classes == 1
    np.testing.assert_array_equal(code.decode(code.encode(np.ones((9, 3), int)), 9), 1)


def test_the_same_coefficients_give_the_same_code() -> None:
    again = fit_code(_mixed(SPREADS, 3000, 1), 4)
    np.testing.assert_array_equal(again.shares, OF_CLASSES.shares)
    np.testing.assert_array_equal(again.frequencies, OF_CLASSES.frequencies)


@pytest.mark.parametrize("code", [CODE, OF_CLASSES], ids=["one class", "four classes"])
def test_prices_add_up_to_the_size(code: CoefficientCode) -> None:
    """In the class of the fewest bits, but for a byte of each lane."""
    values = (_drawn if code is CODE else _mixed)(SPREADS, 4096, 2)
    prices = code.prices()
    assert prices.shape == (code.num_classes, len(SPREADS), 255)
    index = np.clip(values, -127, 127) + 127
    of_positions = prices[:, np.arange(len(SPREADS)), index].sum(2)
    num_bytes = float(of_positions.min(0).sum()) / 8
    assert num_bytes == pytest.approx(len(code.encode(values)) - rans.MAX_LANES, rel=0.02)
    assert (prices[:, 45:, 127] == prices[:, 45:].min(2)).all()


def test_the_code_of_the_largest_coefficients_does_not_depend_on_their_precision() -> None:
    """A limit is one above what is there: in 16 bits that would be negative."""
    values = np.full((300, 20), MAX_VALUE)
    narrow, wide = (fit_code(values.astype(dtype)) for dtype in (np.int16, np.int64))
    assert (wide.limits == 127).all()
    np.testing.assert_array_equal(narrow.limits, wide.limits)


def test_few_coefficients_are_at_a_limit() -> None:
    values = _drawn(SPREADS, 3000, 1)
    values[:, :16] >>= 1
    assert ((np.abs(values) >= CODE.limits).mean(0) <= 0.01).all()


@pytest.mark.parametrize("value", [MAX_VALUE + 1, -MAX_VALUE - 1])
def test_larger_coefficients_are_refused(value: int) -> None:
    with pytest.raises(ValueError, match="at most ±32767"):
        CODE.encode(np.full((1, len(SPREADS)), value))


@pytest.mark.parametrize("code", [CODE, OF_CLASSES], ids=["one class", "four classes"])
def test_every_damaged_byte_is_an_error_or_other_coefficients(code: CoefficientCode) -> None:
    values = _drawn(SPREADS, 20, 3)
    data = code.encode(values)
    num_refused = 0
    for index in range(len(data)):
        for damaged in (
            data[:index] + bytes([data[index] ^ 0x04]) + data[index + 1 :],
            data[:index] + data[index + 1 :],
            data[:index],
            data + data[index : index + 1],
        ):
            try:
                found = code.decode(damaged, 20)
            except ValueError:
                num_refused += 1
            else:
                assert (found != values).any()
    assert num_refused > 3 * len(data)


@pytest.mark.parametrize("half", [2**14, -(2**14) - 1, -(2**14)])
def test_halves_of_larger_coefficients_are_refused(half: int) -> None:
    """What a code without raw bits writes, and a zero bit for each."""
    halves = np.array([[half]])
    plain = fit_code(np.array([[3], [-3], [0]]))
    of_halves = replace(plain, num_raw_bits=1)
    assert of_halves.decode(of_halves.encode(2 * halves // 3), 1) == 2 * halves // 3
    symbols = np.vstack([np.zeros(1, np.uint8), [0 if half < 0 else 2 * int(plain.limits[0])]])
    rest = b"\0" + bits.encode_numbers(np.abs(halves[0]) - int(plain.limits[0]))
    data = rans.encode(symbols.astype(np.uint8), plain.tables, rest)
    with pytest.raises(ValueError, match="at most ±32767"):
        of_halves.decode(data, 1)


@pytest.mark.parametrize("limits", [[], [0], [128], [1, 2]])
def test_limits_out_of_bounds_or_order_are_refused(limits: list[int]) -> None:
    with pytest.raises(ValueError, match="limits: expected numbers"):
        CoefficientCode(np.array(limits, np.uint8), CODE.shares, CODE.frequencies[:, : len(limits)])


@pytest.mark.parametrize("num_raw_bits", [-1, len(SPREADS) + 1])
def test_raw_bits_of_other_components_are_refused(num_raw_bits: int) -> None:
    with pytest.raises(ValueError, match="raw bits: expected from 0 to 90 of a position"):
        replace(CODE, num_raw_bits=num_raw_bits)


def test_frequencies_of_other_symbols_are_refused() -> None:
    with pytest.raises(ValueError, match=r"frequencies: expected \d+ rows"):
        replace(CODE, frequencies=CODE.frequencies[:, :-1])
    with pytest.raises(ValueError, match=r"frequencies: expected \d+ symbols"):
        replace(CODE, frequencies=CODE.frequencies[:, ::-1])
    frequencies = CODE.frequencies.copy()
    frequencies[0, -1, frequencies[0, -1].argmax()] -= 1
    with pytest.raises(ValueError, match="sum of 16384"):
        replace(CODE, frequencies=frequencies)


def test_frequencies_of_other_classes_are_refused() -> None:
    with pytest.raises(ValueError, match="expected 3 classes, found others"):
        replace(OF_CLASSES, frequencies=OF_CLASSES.frequencies[:3])
    with pytest.raises(ValueError, match="expected 4 classes, found others"):
        replace(OF_CLASSES, shares=OF_CLASSES.shares[::-1])
