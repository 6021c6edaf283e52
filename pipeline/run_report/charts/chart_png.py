"""A chart as a PNG, for a text that is written elsewhere."""

import warnings
from pathlib import Path

from pipeline.run_report.charts.chart_scale import scales, tick_texts
from pipeline.run_report.charts.colours import LIGHT_COLOURS, NUM_COLOURS, NUM_DASHES
from pipeline.run_report.charts.make_charts import Chart

_DASHES: tuple[str | tuple[int, tuple[int, ...]], ...] = ("-", "--", ":", "-.")
_MOST_NAMED = 16  # lines in a legend


def write_png(chart: Chart, target: Path) -> None:
    """Write the picture to ``target``, which nobody reads meanwhile."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    x_scale, y_scale = scales(chart)
    figure, axes = plt.subplots(figsize=(7.2, 4.4), layout="constrained")
    num_named = 0
    for line in chart.lines:
        xs, ys = zip(*line.points, strict=True)
        label = None
        if line.is_mean and num_named < _MOST_NAMED:
            label, num_named = _literal(line.label), num_named + 1
        axes.plot(
            xs,
            ys,
            color=LIGHT_COLOURS[line.group % NUM_COLOURS],
            linestyle=_DASHES[line.group // NUM_COLOURS % NUM_DASHES],
            linewidth=1.8 if line.is_mean else 0.8,
            alpha=1.0 if line.is_mean else 0.4,
            marker="o" if len(xs) == 1 else None,
            label=label,
        )
    for y in chart.references:
        axes.axhline(y, color="0.4", linestyle="--", linewidth=1, label=f"teacher {y:.4f}")
    axes.set(title=_literal(chart.title), xlabel=chart.x_label, ylabel=_literal(chart.y_label))
    axes.set_xlim(x_scale.low, x_scale.high)
    axes.set_xticks(x_scale.ticks, tick_texts(x_scale.ticks))
    axes.set_yscale("log" if y_scale.is_log else "linear")
    axes.set_ylim(y_scale.low, y_scale.high)
    axes.grid(color="0.9")
    if axes.get_legend_handles_labels()[1]:
        axes.legend(fontsize="small")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing", UserWarning)  # drawn as a box
        figure.savefig(target, format="png", dpi=120)
    plt.close(figure)


def _literal(text: str) -> str:
    """``text`` without what matplotlib reads as a formula; short, and not a hidden label."""
    text = text if len(text) <= 60 else text[:59] + "…"
    return text.replace("$", r"\$").lstrip("_") or "?"
