"""The curve of bytes against students, as a picture.

In: the rows of the table. Out: loss above bytes per token, a point for each kind of targets with
the standard deviation over seeds, and lines for students of the teacher in the loop and of labels.
"""

import statistics
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

_WITHOUT_CACHE = {"online": "teacher in the loop", "labels": "labels alone"}
_COLORS = {"top_k": "tab:orange", "hidden": "tab:blue", "top_k+hidden": "tab:purple"}


def name_of(row: Mapping[str, Any]) -> str:
    """What a row is called: the way, or its settings, numbers with the names of theirs."""
    if row["way"] in _WITHOUT_CACHE:
        return _WITHOUT_CACHE[row["way"]]
    settings = {key: str(value) for key, value in row["settings"].items()}
    words = [_words(key, value) for key, value in settings.items() if value not in settings]
    return ", ".join(words)


def _words(key: str, value: str) -> str:
    with suppress(ValueError):
        return f"{key} {float(value):g}"
    return value


def save_plot(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Write the picture, in the format of the name's ending."""
    import matplotlib as mpl  # takes a while
    from matplotlib.figure import Figure

    mpl.rcParams["svg.fonttype"] = "none"  # text stays text
    figure = Figure(figsize=(7.5, 4.5), layout="constrained")
    axes = figure.subplots()
    for row in rows:
        losses = [student["validation_loss"] for student in row["students"]]
        mean = statistics.mean(losses)
        spread = statistics.stdev(losses) if len(losses) > 1 else 0.0
        if row["way"] in _WITHOUT_CACHE:
            axes.axhline(mean, color="0.5", linestyle="--" if row["way"] == "online" else ":")
            axes.axhspan(mean - spread, mean + spread, color="0.5", alpha=0.15, linewidth=0)
            axes.annotate(
                name_of(row), (1, mean), xycoords=("axes fraction", "data"), ha="right", va="bottom"
            )
            continue
        color = _COLORS.get(str(row["settings"]["targets"]), "tab:green")
        x = row["bytes_per_token"]
        axes.errorbar(x, mean, yerr=spread, fmt="o", capsize=3, color=color)
        axes.annotate(
            name_of(row), (x, mean), xytext=(6, 4), textcoords="offset points", fontsize=8
        )
    axes.set_xlabel("bytes per token of the targets")
    axes.set_ylabel("validation loss of the student, nats")
    most = max(row.get("bytes_per_token", 0.0) for row in rows)
    axes.set_xlim(0, 1.25 * most)  # with room for the last name
    figure.savefig(path)
