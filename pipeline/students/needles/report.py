"""What the needle probe found, as tables and as a picture.

In: the figures of ``probe``. Out: text, or a PNG with a heat map of each model and measure.
"""

import statistics
from pathlib import Path
from typing import Any

WHO = ("teacher", "student")
_MEASURES = {"recall": "number generated", "choice": "number likeliest of {answers}"}


def needle_text(found: dict[str, Any]) -> str:
    """A table of each model and measure: prompt lengths down, depths across."""
    heads = ["tokens", *(f"{depth:.0%}" for depth in found["depths"]), "mean"]
    tables = []
    for who in (name for name in WHO if name in found):
        for measure, label in _titles(found).items():
            lines = [f"{who}, {label}", "".join(f"{head:>8}" for head in heads)]
            for length, cells in zip(found["lengths"], found[who][measure], strict=True):
                values = [*cells, statistics.fmean(cells)]
                lines.append(f"{length:>8,}" + "".join(f"{value:>8.2f}" for value in values))
            tables.append("\n".join(lines))
    chance = 1 / found["answers"]
    tables.append(
        f"Means of {found['trials']} prompts by length and by depth of the needle (0%: at the "
        f"beginning). Guessing is right {chance:.2f} of the time among {found['answers']} numbers, "
        "and never generates one."
    )
    return "\n\n".join(tables)


def draw_needles(target: Path, found: dict[str, Any]) -> None:
    """Write the PNG, whole or not at all."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    from cache_format.storage.atomic import atomic_file

    names = [name for name in WHO if name in found]
    height = 1.4 + len(names) * (0.9 + 0.45 * len(found["lengths"]))
    figure, grid = plt.subplots(
        len(names), len(_MEASURES), figsize=(10, height), layout="constrained", squeeze=False
    )
    image: Any = None
    for row, who in zip(grid, names, strict=True):
        for axes, (measure, label) in zip(row, _titles(found).items(), strict=True):
            image = _draw(axes, found, found[who][measure])
            axes.set(title=f"{who}: {label}", xlabel="depth of the needle", ylabel="tokens")
    figure.colorbar(image, ax=grid, label="share of prompts")
    with atomic_file(target) as file:
        figure.savefig(file, format="png", dpi=120)
    plt.close(figure)


def _draw(axes: Any, found: dict[str, Any], cells: list[list[float]]) -> Any:
    image = axes.imshow(cells, vmin=0.0, vmax=1.0, cmap="viridis", aspect="auto")
    axes.set_xticks(range(len(found["depths"])), [f"{depth:.0%}" for depth in found["depths"]])
    axes.set_yticks(range(len(found["lengths"])), [f"{length:,}" for length in found["lengths"]])
    for y, row in enumerate(cells):
        for x, value in enumerate(row):
            colour = "white" if value < 0.6 else "black"
            axes.text(x, y, f"{value:.2f}", ha="center", va="center", color=colour)
    return image


def _titles(found: dict[str, Any]) -> dict[str, str]:
    return {measure: text.format(**found) for measure, text in _MEASURES.items()}
