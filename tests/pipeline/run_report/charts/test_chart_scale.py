"""Axes: round ticks within the range, whatever is drawn."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.run_report.charts.chart_scale import linear, logarithmic, scales, tick_texts
from pipeline.run_report.charts.make_charts import Chart, Line, thinned

_VALUES = st.floats(-1e100, 1e100).map(lambda value: 0.0 if abs(value) < 1e-100 else value)


def chart(*points: tuple[float, float]) -> Chart:
    line = Line(label="", group=0, points=points, is_mean=True)
    return Chart(slug="a", title="", x_label="optimizer step", y_label="", lines=(line,))


@given(_VALUES, _VALUES)
def test_linear_axes_hold_their_values_and_ticks(one: float, other: float) -> None:
    low, high = sorted((one, other))
    found = linear(low, high, margin=0.05)
    assert found.low <= low <= high <= found.high
    assert found.low < found.high
    assert all(-1e-6 <= found.place(tick) <= 1 + 1e-6 for tick in found.ticks)
    assert len(tick_texts(found.ticks)) == len(found.ticks) <= 21


@given(st.floats(1e-100, 1e100), st.floats(100, 1e90))
def test_logarithmic_axes_hold_their_values_and_ticks(low: float, ratio: float) -> None:
    found = logarithmic(low, low * ratio)
    assert 0 <= found.place(low) < found.place(low * ratio) <= 1
    assert all(0 <= found.place(tick) <= 1 for tick in found.ticks)
    assert 1 <= len(found.ticks) <= 8


def test_ticks_are_round() -> None:
    assert linear(0.0, 1.0, margin=0.0).ticks == pytest.approx((0, 0.2, 0.4, 0.6, 0.8, 1.0))
    assert linear(0.0, 4.0, margin=0.0, is_whole=True).ticks == (0, 1, 2, 3, 4)
    assert tick_texts((0.0, 50_000.0)) == ["0", "50k"]
    assert tick_texts((1e-5, 1e-4, 1e-3)) == ["1e-5", "1e-4", "0.001"]
    assert tick_texts((2e6, 2.5e6)) == ["2e6", "2.5e6"]
    assert tick_texts((4.1, 4.15, 4.2)) == ["4.1", "4.15", "4.2"]


def test_the_untrained_student_does_not_squeeze_the_rest() -> None:
    later = [(float(step), 4.0 + 0.1 / step) for step in range(1, 5)]
    assert scales(chart((0.0, 9.0), *later))[1].high < 5
    assert scales(chart((0.0, 9.0), *later[:2]))[1].high > 9


def test_what_spans_decades_is_drawn_by_its_logarithm() -> None:
    assert scales(chart((1.0, 1e-3), (2.0, 1.0)))[1].is_log
    assert not scales(chart((1.0, -1e-3), (2.0, 1.0)))[1].is_log


def test_thinning_keeps_the_ends() -> None:
    points = [(float(x), 0.0) for x in range(1000)]
    found = thinned(points, 30)
    assert (len(found), found[0], found[-1]) == (30, points[0], points[-1])
    assert thinned(points[:5], 30) == tuple(points[:5])
