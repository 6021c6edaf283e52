"""Which charts a report has, as data: lines of points, drawn by ``chart_svg`` and ``chart_png``.

In: groups of runs. Out: charts over optimizer steps (validation, each term of the loss, schedules,
speed) and over depth (alignment error and output gate of each layer).
"""

import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from pipeline.run_report.recorded.metric_series import Series
from pipeline.run_report.recorded.recorded_run import RecordedRun
from pipeline.run_report.recorded.seed_groups import SeedGroup

Point = tuple[float, float]

_MOST_POINTS = 300_000  # of all charts, so that a page of many runs still opens
_FEWEST, _MOST = 30, 300  # of a line
_MOST_CHARTS = 60
_LAYER = re.compile(r"validation/([a-z_]{1,40})_layer_(\d{1,4})", re.ASCII)
_KNOWN = re.compile(r"(validation|train|schedule)/[A-Za-z0-9_.-]+|speed/tokens_per_second")
_LEFT_OUT = re.compile(r"validation/(teacher_\w+|perplexity)")
_TITLES = {
    "validation/loss": ("Validation loss", "nats per token"),
    "validation/kl": ("Validation KL to the teacher", "nats per token"),
    "validation/agreement": ("Agreement with the teacher's first choice", "share of positions"),
    "validation/accuracy": ("Accuracy", "share of positions"),
    "validation/ece": ("Expected calibration error", "share"),
    "validation/alignment": ("Alignment error, mean over layers", "mean square"),
    "validation/mlstm_share": ("The mLSTM's share (mean output gate)", "share"),
    "train/loss": ("Training loss, all terms", "weighted sum"),
    "train/cross_entropy": ("Cross-entropy term", "nats per token"),
    "train/kl": ("KL term, at the step's T", "nats per token"),
    "train/frobenius": ("Frobenius term", "loss"),
    "train/alignment": ("Alignment term", "mean square"),
    "train/gradient_norm": ("Gradient norm", "before clipping"),
    "schedule/alpha": ("α, weight of the KL term", "weight"),
    "schedule/temperature": ("T, temperature of the KL term", "temperature"),
    "schedule/beta": ("β, weight of the Frobenius term", "weight"),
    "schedule/learning_rate": ("Learning rate", "rate"),
    "speed/tokens_per_second": ("Speed", "tokens per second"),
    "alignment": ("Alignment error over depth", "mean square"),
    "output_gate": ("Output gate over depth (0 window, 1 mLSTM)", "median gate"),
}


@dataclass(frozen=True, kw_only=True)
class Line:
    """One curve."""

    label: str
    group: int
    """The number of its group, which chooses its colour."""
    points: tuple[Point, ...]
    is_mean: bool
    """Of a group's runs, or of a run that has no others beside it; a run among others is drawn
    faintly."""


@dataclass(frozen=True, kw_only=True)
class Chart:
    """Lines in one frame."""

    slug: str
    """Its file's name, without ending."""
    title: str
    x_label: str
    y_label: str
    lines: tuple[Line, ...]
    references: tuple[float, ...] = ()
    """What the teachers reach on the rows of each cache."""


def make_charts(groups: Sequence[SeedGroup]) -> list[Chart]:
    """The charts that ``groups`` have points for."""
    metrics = [run.metrics for group in groups for run in group.runs]
    names = sorted({name for each in metrics for name in each.by_name if _is_shown(name)}, key=_key)
    names = names[:_MOST_CHARTS]
    num_lines = sum(name in each.by_name for name in names for each in metrics)
    most = max(_FEWEST, min(_MOST, _MOST_POINTS // max(1, num_lines)))
    charts = [_over_steps(name, groups, most) for name in names]
    charts += [_over_depth(kind, groups) for kind in _layer_kinds(groups)]
    return _with_own_slugs([chart for chart in charts if chart.lines])


def thinned(points: Sequence[Point], most: int) -> tuple[Point, ...]:
    """At most ``most`` of ``points``, evenly; the first and the last are kept."""
    if len(points) <= most:
        return tuple(points)
    chosen = (round(number * (len(points) - 1) / (most - 1)) for number in range(most))
    return tuple(points[number] for number in dict.fromkeys(chosen))


def _is_shown(name: str) -> bool:
    return (
        _KNOWN.fullmatch(name) is not None
        and _LEFT_OUT.fullmatch(name) is None
        and _LAYER.fullmatch(name) is None
    )


def _key(name: str) -> tuple[int, str]:
    order = list(_TITLES)
    return (order.index(name) if name in order else len(order), name)


def _over_steps(name: str, groups: Sequence[SeedGroup], most: int) -> Chart:
    title, unit = _TITLES.get(name, (name, ""))
    lines: list[Line] = []
    for number, group in enumerate(groups):
        curves = {run.name: run.metrics.of(name) for run in group.runs if run.metrics.of(name)}
        for label, curve in curves.items():
            points = thinned([(float(step), value) for step, value in curve.items()], most)
            is_alone = len(curves) == 1
            shown = group.name if is_alone else label
            lines.append(Line(label=shown, group=number, points=points, is_mean=is_alone))
        if len(curves) > 1:
            points = thinned(_mean(list(curves.values())), most)
            label = f"{group.name} (mean)"
            lines.append(Line(label=label, group=number, points=points, is_mean=True))
    references = _teacher_losses(groups) if name == "validation/loss" else ()
    return Chart(
        slug=_slug(name),
        title=title,
        x_label="optimizer step",
        y_label=unit,
        lines=tuple(line for line in lines if line.points),
        references=references,
    )


def _mean(curves: Sequence[Series]) -> list[Point]:
    """Over the steps that all have."""
    common = [step for step in curves[0] if all(step in curve for curve in curves)]
    return [
        (float(step), math.fsum(curve[step] for curve in curves) / len(curves)) for step in common
    ]


def _teacher_losses(groups: Sequence[SeedGroup]) -> tuple[float, ...]:
    runs = (run for group in groups for run in group.runs)
    losses = (run.metrics.last("validation/teacher_loss") for run in runs)
    return tuple(sorted({round(loss, 6) for loss in losses if loss is not None}))


def _layer_kinds(groups: Sequence[SeedGroup]) -> list[str]:
    names = {name for group in groups for run in group.runs for name in run.metrics.by_name}
    kinds = {match[1] for name in names if (match := _LAYER.fullmatch(name))}
    return sorted(kinds, key=_key)[:_MOST_CHARTS]


def _over_depth(kind: str, groups: Sequence[SeedGroup]) -> Chart:
    title, unit = _TITLES.get(kind, (f"{kind} over depth", ""))
    lines: list[Line] = []
    for number, group in enumerate(groups):
        curves = {run.name: points for run in group.counted if (points := _layers(run, kind))}
        for label, points in curves.items():
            is_alone = len(curves) == 1
            shown = group.name if is_alone else label
            lines.append(Line(label=shown, group=number, points=points, is_mean=is_alone))
        if len(curves) > 1:
            by_layer = [{int(x): y for x, y in points} for points in curves.values()]
            mean = tuple(_mean(by_layer))
            lines.append(
                Line(label=f"{group.name} (mean)", group=number, points=mean, is_mean=True)
            )
    return Chart(
        slug=f"depth-{_slug(kind)}",
        title=f"{title}, last validation",
        x_label="layer",
        y_label=unit,
        lines=tuple(line for line in lines if line.points),
    )


def _layers(run: RecordedRun, kind: str) -> tuple[Point, ...]:
    found: dict[int, float] = {}
    for name in run.metrics.by_name:
        match, value = _LAYER.fullmatch(name), run.metrics.last(name)
        if match is not None and match[1] == kind and value is not None:
            found[int(match[2])] = value
    return tuple((float(layer), found[layer]) for layer in sorted(found))


def _slug(name: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def _with_own_slugs(charts: Iterable[Chart]) -> list[Chart]:
    """Names that differ in other signs alone would be one file."""
    found: dict[str, Chart] = {}
    for chart in charts:
        slug, number = chart.slug, 1
        while slug in found:
            number += 1
            slug = f"{chart.slug}-{number}"
        found[slug] = replace(chart, slug=slug)
    return list(found.values())
