"""A chart as an ``<svg>`` element, which names nothing outside of itself.

Its classes are coloured by the page's style, so that it follows light and dark. What is written in
it comes from files of whoever ran the runs, and is only text here.
"""

from html import escape

from pipeline.run_report.charts.chart_scale import Scale, scales, tick_texts
from pipeline.run_report.charts.colours import NUM_COLOURS, NUM_DASHES
from pipeline.run_report.charts.make_charts import Chart, Line

WIDTH, HEIGHT = 480, 300
_LEFT, _RIGHT, _TOP, _BOTTOM = 70, 16, 10, 42


def svg(chart: Chart) -> str:
    """The picture. The script finds the axes' ranges in its data attributes."""
    x_scale, y_scale = scales(chart)
    frame = f"frame-{chart.slug}"
    right, bottom = WIDTH - _RIGHT, HEIGHT - _BOTTOM
    parts = [
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(chart.title)}" '
        f'data-box="{_LEFT} {_TOP} {right} {bottom}" '
        f'data-x="{x_scale.low!r} {x_scale.high!r}" '
        f'data-y="{y_scale.low!r} {y_scale.high!r} {"log" if y_scale.is_log else "linear"}">',
        f'<clipPath id="{frame}"><rect x="{_LEFT}" y="{_TOP}" width="{right - _LEFT}" '
        f'height="{bottom - _TOP}"/></clipPath>',
        *_grid(x_scale, y_scale),
        f'<g clip-path="url(#{frame})">',
        *(_reference(loss, y_scale) for loss in chart.references),
        *(_polyline(line, x_scale, y_scale) for line in chart.lines),
        "</g>",
        f'<text x="{(_LEFT + right) / 2:.0f}" y="{HEIGHT - 6}" '
        f'text-anchor="middle">{escape(chart.x_label)}</text>',
        f'<line class="cursor" x1="0" x2="0" y1="{_TOP}" y2="{bottom}"/>',
        "</svg>",
    ]
    return "\n".join(parts)


def group_classes(group: int) -> str:
    """The classes that give a group its colour and, where colours run out, its dashes."""
    return f"c{group % NUM_COLOURS} d{group // NUM_COLOURS % NUM_DASHES}"


def _grid(x_scale: Scale, y_scale: Scale) -> list[str]:
    right, bottom = WIDTH - _RIGHT, HEIGHT - _BOTTOM
    parts = []
    for tick, text in zip(y_scale.ticks, tick_texts(y_scale.ticks), strict=True):
        y = _y(tick, y_scale)
        parts.append(f'<line class="grid" x1="{_LEFT}" x2="{right}" y1="{y}" y2="{y}"/>')
        parts.append(f'<text x="{_LEFT - 5}" y="{y + 4:.1f}" text-anchor="end">{text}</text>')
    for tick, text in zip(x_scale.ticks, tick_texts(x_scale.ticks), strict=True):
        x = _x(tick, x_scale)
        parts.append(f'<line class="grid" x1="{x}" x2="{x}" y1="{_TOP}" y2="{bottom}"/>')
        parts.append(f'<text x="{x}" y="{bottom + 16}" text-anchor="middle">{text}</text>')
    return parts


def _reference(value: float, y_scale: Scale) -> str:
    y = _y(value, y_scale)
    return (
        f'<line class="reference" x1="{_LEFT}" x2="{WIDTH - _RIGHT}" y1="{y}" y2="{y}">'
        f"<title>teacher {value:.4f}</title></line>"
    )


def _polyline(line: Line, x_scale: Scale, y_scale: Scale) -> str:
    classes = f"curve {group_classes(line.group)}{'' if line.is_mean else ' faint'}"
    data = f'data-group="{line.group}" data-label="{escape(line.label)}"'
    title = f"<title>{escape(line.label)}</title>"
    places = [(_x(x, x_scale), _y(y, y_scale)) for x, y in line.points]
    if len(places) == 1:  # a line of one point is invisible
        x, y = places[0]
        return f'<circle class="{classes}" {data} cx="{x}" cy="{y}" r="3">{title}</circle>'
    points = " ".join(f"{x},{y}" for x, y in places)
    return f'<polyline class="{classes}" {data} points="{points}">{title}</polyline>'


def _x(value: float, scale: Scale) -> float:
    return round(_LEFT + scale.place(value) * (WIDTH - _RIGHT - _LEFT), 1)


def _y(value: float, scale: Scale) -> float:
    # Far outside of the frame, a coordinate of many digits would say no more.
    place = min(max(scale.place(value), -3.0), 4.0)
    return round(HEIGHT - _BOTTOM - place * (HEIGHT - _BOTTOM - _TOP), 2)
