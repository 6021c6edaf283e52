"""Accuracy against the row's length, as a picture.

In: the rows of the table. Out: a panel for each number of pairs, a line for each mixer with the
standard deviation over seeds, and the level of guessing among a row's values.
"""

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.recall.mixers import HYBRID_PATTERNS, LABELS, MIXERS

_MARKERS = "osD^vPX"


def save_plot(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Write the picture, in the format of the name's ending."""
    import matplotlib as mpl  # takes a while
    from matplotlib.figure import Figure

    mpl.rcParams["svg.fonttype"] = "none"  # text stays text
    mpl.rcParams["svg.hashsalt"] = "recall"  # equal figures give equal files
    panels = sorted({row["pairs"] for row in rows})
    figure = Figure(figsize=(4.5 * len(panels) + 3.5, 4.2), layout="constrained")
    for axes, num_pairs in zip(
        figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True
    ):
        _draw(axes, [row for row in rows if row["pairs"] == num_pairs])
        axes.axhline(1 / num_pairs, color="0.5", linestyle=":", label="1 / pairs")
        axes.set_title(f"{num_pairs} pairs")
    axes.legend(loc="center left", bbox_to_anchor=(1.02, 0.5), frameon=False)
    figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None)


def _draw(axes: Any, rows: Sequence[Mapping[str, Any]]) -> None:
    lengths = sorted({row["length"] for row in rows})
    for index, mixer in enumerate(MIXERS):
        own = [(row["length"], row) for row in rows if row["mixer"] == mixer]
        accuracies = [[one["accuracy"] for one in row["trainings"]] for _, row in own]
        axes.errorbar(
            [length * 1.02 ** (index - len(MIXERS) // 2) for length, _ in own],  # side by side
            [statistics.mean(values) for values in accuracies],
            yerr=[statistics.stdev(values) if len(values) > 1 else 0.0 for values in accuracies],
            marker=_MARKERS[index],
            linestyle="-" if mixer in ("attention", *HYBRID_PATTERNS) else "--",
            capsize=3,
            label=LABELS[mixer],
        )
    axes.set_xscale("log", base=2)
    axes.set_xticks(lengths, [str(length) for length in lengths])
    axes.set_xlabel("positions in a row")
    axes.set_ylabel("accuracy on held-out rows")
    axes.set_ylim(-0.03, 1.05)
