"""The sLSTM scan beside the package's vanilla one: the same weights, forward and backward.

Runs alternate and the ratio of their medians is printed, because machines are noisy.
"""

import json
import statistics
import time
from collections.abc import Callable
from typing import Any

import click


@click.command("student", help=__doc__)
@click.option("--width", type=int, default=512, show_default=True)
@click.option("--positions", type=int, default=256, show_default=True)
@click.option("--batch", type=int, default=8, show_default=True)
@click.option("--repeats", type=int, default=5, show_default=True)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def student(width: int, positions: int, batch: int, repeats: int, as_json: bool) -> None:
    ours, vanilla = _contenders(width, positions, batch)
    seconds: dict[str, list[float]] = {"ours": [], "vanilla": []}
    for _ in range(repeats + 1):
        for name, run in (("ours", ours), ("vanilla", vanilla)):
            begin = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - begin)
    median = {name: statistics.median(values[1:]) for name, values in seconds.items()}
    figures = {
        "slstm_speedup_over_vanilla": round(median["vanilla"] / median["ours"], 2),
        "ours_tokens_per_s": round(batch * positions / median["ours"]),
        "vanilla_tokens_per_s": round(batch * positions / median["vanilla"]),
    }
    lines = [f"{name:32}{value}" for name, value in figures.items()]
    click.echo(json.dumps(figures) if as_json else "\n".join(lines))


def _contenders(
    width: int, positions: int, batch: int
) -> tuple[Callable[[], Any], Callable[[], Any]]:
    """Forward and backward of one sLSTM layer, ours and the package's."""
    raise SystemExit("filled in below")
