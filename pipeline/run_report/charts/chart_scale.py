"""The range and the ticks of a chart's axes.

In: a chart. Out: for each axis a ``Scale``, linear or logarithmic.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from pipeline.run_report.charts.make_charts import Chart

_NUM_TICKS = 5
_LOG_RATIO = 100.0
"""Positive figures that span more are drawn on a logarithmic axis."""


@dataclass(frozen=True, kw_only=True)
class Scale:
    """An axis from ``low`` to ``high``, which differ."""

    low: float
    high: float
    is_log: bool
    ticks: tuple[float, ...]

    def place(self, value: float) -> float:
        """0 at ``low`` and 1 at ``high``; further out where a value is."""
        if not self.is_log:
            return (value - self.low) / (self.high - self.low)
        if value <= 0:
            return -1.0
        return math.log(value / self.low) / math.log(self.high / self.low)


def scales(chart: Chart) -> tuple[Scale, Scale]:
    """Of x and of y.

    What an untrained student has (step 0) would squeeze the rest: with at least three later points,
    it may lie outside of the frame.
    """
    xs = [x for line in chart.lines for x, _ in line.points]
    ys = list(chart.references) + [
        y
        for line in chart.lines
        for x, y in line.points
        if x > 0 or len(line.points) < 4 or chart.x_label == "layer"
    ]
    x_scale = linear(min(xs), max(xs), margin=0.0, is_whole=True)
    low, high = min(ys), max(ys)
    if low > 0 and high / low > _LOG_RATIO:
        return x_scale, logarithmic(low, high)
    return x_scale, linear(low, high, margin=0.05)


def linear(low: float, high: float, *, margin: float, is_whole: bool = False) -> Scale:
    """With a margin of this share on both sides; a single value gets room around it.

    ``is_whole``: no ticks between whole numbers, as there is no layer 0.5.
    """
    if not high - low > max(abs(low), abs(high)) * 1e-9:
        room = abs(low) * 0.05 or 0.5
        low, high = low - room, high + room
    room = (high - low) * margin
    low, high = low - room, high + room
    ticks = _round_ticks(low, high, least=1.0 if is_whole else 0.0)
    return Scale(low=low, high=high, is_log=False, ticks=ticks)


def logarithmic(low: float, high: float) -> Scale:
    """Powers of ten, as many as there is room for."""
    low, high = low / 1.2, high * 1.2
    first, last = math.ceil(math.log10(low)), math.floor(math.log10(high))
    stride = max(1, -(-(last - first + 1) // (_NUM_TICKS + 1)))
    ticks = tuple(10.0**power for power in range(first, last + 1, stride))
    return Scale(low=low, high=high, is_log=True, ticks=ticks)


def tick_texts(ticks: Sequence[float]) -> list[str]:
    """With as many digits as it takes to tell them apart."""
    for digits in range(1, 8):
        texts = [f"{tick:.{digits}g}" for tick in ticks]
        if len(set(texts)) == len(texts) and all(
            math.isclose(float(text), tick, rel_tol=1e-9, abs_tol=1e-12)
            for text, tick in zip(texts, ticks, strict=True)
        ):
            return [_short(text) for text in texts]
    return [_short(f"{tick:.4g}") for tick in ticks]


def _short(text: str) -> str:
    """Thousands as k and powers of ten as e, so that a text takes little room."""
    number = float(text)
    if 1e4 <= abs(number) < 1e6 and number % 100 == 0:
        return f"{number / 1000:g}k"
    if number == 0 or 1e-3 <= abs(number) < 1e6:
        return f"{number:g}"
    mantissa, _, exponent = f"{number:.3e}".partition("e")
    return f"{float(mantissa):g}e{int(exponent)}"


def _round_ticks(low: float, high: float, least: float) -> tuple[float, ...]:
    """Multiples of 1, 2 or 5 times a power of ten, about five of them, at least ``least`` apart."""
    rough = max((high - low) / _NUM_TICKS, least)
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= rough * 0.999)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return tuple(number * step for number in range(first, min(last, first + 20) + 1))
