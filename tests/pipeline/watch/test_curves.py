"""Curves of characters: their width, their course, and values that are no course."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.watch.curves import curve, sparkline


def test_a_sparkline_goes_from_the_least_to_the_largest() -> None:
    assert sparkline([0, 1, 2, 3, 4, 5, 6, 7], 8) == "▁▂▃▄▅▆▇█"
    assert sparkline([3, 1, 2], 8) == "█▁▅"
    assert sparkline([3, 1, 2], 8, is_ascii=True) == "#_+"


def test_more_values_than_fit_are_means() -> None:
    assert sparkline([0, 0, 8, 8, 4, 4], 3) == "▁█▅"


@pytest.mark.parametrize(("values", "expected"), [([], ""), ([2.5], "▅"), ([1, 1], "▅▅")])
def test_values_without_a_course(values: list[float], expected: str) -> None:
    assert sparkline(values, 8) == expected


def test_a_curve_is_drawn_from_the_top() -> None:
    assert curve([0, 1, 2, 3], 4, 1) == ["⡠⠊"]
    assert curve([0, 7], 4, 2) == ["⠈", "⡀"]
    assert curve([0, 1], 4, 2, is_ascii=True) == [" *", "* "]


@given(
    st.lists(st.floats(-1e100, 1e100), max_size=200),
    st.integers(1, 60),
    st.integers(1, 8),
    st.booleans(),
)
def test_a_curve_fits_and_shows_every_column(
    values: list[float], width: int, height: int, is_ascii: bool
) -> None:
    lines = curve(values, width, height, is_ascii=is_ascii)
    assert len(lines) == height
    num_columns = min(width, math.ceil(len(values) / (1 if is_ascii else 2)))
    assert {len(line) for line in lines} == {num_columns}
    for column in zip(*lines, strict=True):
        assert any(character not in (" ", "⠀") for character in column)
