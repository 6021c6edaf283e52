"""The curve of bytes against students, as a picture.

In: the rows of the table. Out: loss above bytes per token, a point for each kind of targets with
the standard deviation over seeds, and lines for students of the teacher in the loop and of labels.
"""

import statistics
from collections.abc import Mapping, Sequence
from itertools import cycle
from pathlib import Path
from typing import Any

from benchmarks.bytes_result import name_of

_COLORS = {"top_k": "tab:orange", "hidden": "tab:blue", "top_k+hidden": "tab:purple"}
_MARKERS = "osD^vPX*"


def save_plot(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Write the picture, in the format of the name's ending."""
    import matplotlib as mpl  # takes a while
    from matplotlib.figure import Figure

    mpl.rcParams["svg.fonttype"] = "none"  # text stays text
    figure = Figure(figsize=(7.5, 5.2), layout="constrained")
    axes = figure.subplots()
    markers = cycle(_MARKERS)
    for row in rows:
        losses = [student["validation_loss"] for student in row["students"]]
        mean = statistics.mean(losses)
        spread = statistics.stdev(losses) if len(losses) > 1 else 0.0
        name = name_of(row)
        if row["way"] != "cache":
            style = "--" if row["way"] == "online" else ":"
            axes.axhline(mean, color="0.5", linestyle=style, label=name)
            axes.axhspan(mean - spread, mean + spread, color="0.5", alpha=0.15, linewidth=0)
            continue
        color = _COLORS.get(str(row["settings"].get("targets")), "tab:green")
        x, marker = row["bytes_per_token"], next(markers)
        axes.errorbar(x, mean, yerr=spread, fmt=marker, capsize=3, color=color, label=name)
    axes.set_xlabel("bytes per token of the targets")
    axes.set_ylabel("validation loss of the student, nats")
    axes.set_xlim(left=0)
    figure.legend(loc="outside lower center", ncols=2, fontsize=8)  # points may be close together
    figure.savefig(path)
