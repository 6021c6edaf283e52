"""The C_α curve of a judgement as a picture: PNG, or SVG to be put into a page."""

import io
from pathlib import Path
from typing import Any

from pipeline.judgement.bootstrap import Band
from pipeline.judgement.judgement import GRID, Judgement

_CURVE, _OVER_BENCHMARKS, _OVER_ITEMS = "#1f6feb", "#9aa4b2", "#d9822b"
_LEAST_RANGE = 0.1  # of α; a student that ties everywhere still has an axis


def write_png(judgement: Judgement, target: Path) -> None:
    """Write the picture, whole or not at all."""
    from cache_format.storage.atomic import atomic_file

    with atomic_file(target) as file:
        _draw(judgement, file, "png")


def svg(judgement: Judgement) -> str:
    """The picture as an ``<svg>`` element that names nothing outside of itself."""
    buffer = io.BytesIO()
    _draw(judgement, buffer, "svg")
    text = buffer.getvalue().decode("utf-8")
    return text[text.index("<svg") :]


def _draw(judgement: Judgement, target: Any, kind: str) -> None:
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    # The same judgement gives the same bytes: no date, and names of parts that are not random.
    with mpl.rc_context({"svg.hashsalt": "win-and-tie", "svg.fonttype": "path"}):
        figure, axes = plt.subplots(figsize=(7.2, 4.2), layout="constrained")
        level = f"{judgement.options.level:.0%}"
        _fill(axes, judgement.over_benchmarks, _OVER_BENCHMARKS, f"{level} over benchmarks")
        if judgement.over_items is not None:
            _fill(axes, judgement.over_items, _OVER_ITEMS, f"{level} over items")
        right = max(_LEAST_RANGE, *judgement.tolerances) * 1.05
        alphas, rates = zip(*judgement.curve(), (right, judgement.rate(right)), strict=True)
        axes.step(alphas, rates, where="post", color=_CURVE, linewidth=2, label="student")
        axes.axhline(0.5, color="0.4", linestyle=":", linewidth=1)
        axes.axvline(
            judgement.alpha_star,
            color=_CURVE,
            linestyle="--",
            linewidth=1,
            label=f"α* = {judgement.alpha_star:.4f}",
        )
        axes.set(
            title=f"Win-and-Tie rate on {_literal(judgement.set_name)} "
            f"({len(judgement.benchmarks)} benchmarks)",
            xlabel="tolerance α",
            ylabel="C_α",
            xlim=(0, right),
            ylim=(0, 1.03),
        )
        axes.legend(loc="lower right")
        metadata: dict[str, Any] = {"Date": None} if kind == "svg" else {}
        figure.savefig(target, format=kind, dpi=120, metadata=metadata)
        plt.close(figure)


def _fill(axes: Any, band: Band, colour: str, label: str) -> None:
    low, high = band.rates
    axes.fill_between(
        GRID, low, high, step="post", color=colour, alpha=0.3, linewidth=0, label=label
    )


def _literal(text: str) -> str:
    """``text`` without what matplotlib reads as a formula."""
    return text.replace("$", r"\$")
