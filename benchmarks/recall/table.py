"""The table of accuracies: a line for each mixer, pairs and length."""

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.recall.mixers import LABELS


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    head = (
        f"{'pairs':>5}{'length':>8}  {'':34}{'accuracy':>15}{'solved':>9}{'steps':>7}{'weights':>9}"
    )
    return "\n".join([head, *map(case_line, rows)])


def case_line(row: Mapping[str, Any]) -> str:
    """Mean accuracy ± deviation, how many seeds solved it, and the mean of their steps."""
    values = [one["accuracy"] for one in row["trainings"]]
    spread = f" ±{statistics.stdev(values):.1%}" if len(values) > 1 else ""
    steps = [one["solved_after"] for one in row["trainings"] if one["solved_after"] is not None]
    mean_steps = f"{statistics.mean(steps):.0f}" if steps else ""
    return (
        f"{row['pairs']:>5}{row['length']:>8}  {LABELS[row['mixer']]:34}"
        f"{f'{statistics.mean(values):.1%}{spread}':>15}{f'{len(steps)} of {len(values)}':>9}"
        f"{mean_steps:>7}{row['trainings'][0]['parameters']:>9,}"
    )
