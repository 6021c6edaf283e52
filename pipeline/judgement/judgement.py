"""The judgement of a student: its Win-and-Tie rates on a named set of benchmarks, with bands.

In: paired scores. Out: a ``Judgement``, which is made into text, JSON and pictures elsewhere.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from pipeline.judgement.bootstrap import (
    Band,
    BootstrapOptions,
    band,
    resample_benchmarks,
    resample_items,
)
from pipeline.judgement.paired_scores import PairedBenchmark
from pipeline.judgement.win_and_tie import (
    Floats,
    critical_tolerances,
    needed_tolerances,
)

GRID = tuple(round(0.005 * step, 3) for step in range(201))
"""Tolerances at which the bands of a curve are given: 0 to 1."""


@dataclass(frozen=True, kw_only=True)
class Judgement:
    """What came of it."""

    set_name: str
    benchmarks: tuple[PairedBenchmark, ...]
    tolerances: tuple[float, ...]
    """The least α at which each benchmark is won or tied."""
    alpha_star: float
    options: BootstrapOptions
    over_benchmarks: Band
    over_items: Band | None
    """None where no benchmark has items."""

    @property
    def num_items_logged(self) -> int:
        """Benchmarks with items."""
        return sum(benchmark.items is not None for benchmark in self.benchmarks)

    @property
    def is_lossless(self) -> bool:
        """Whether C_0 ≥ 1/2."""
        return self.rate(0.0) >= 0.5

    @property
    def unit_warning(self) -> str:
        """What to say where one model's scores look like percent and the other's like fractions."""
        are_above = {
            "student": any(benchmark.student > 1 for benchmark in self.benchmarks),
            "teacher": any(benchmark.teacher > 1 for benchmark in self.benchmarks),
        }
        if len(set(are_above.values())) == 1:
            return ""
        percent, fractions = sorted(are_above, key=lambda who: not are_above[who])
        return (
            f"Warning: scores of the {percent} are above 1, but none of the {fractions}: if these "
            "are percent and fractions, nothing here holds. Give both in the same unit."
        )

    def rate(self, alpha: float) -> float:
        """C_α."""
        return sum(needed <= alpha for needed in self.tolerances) / len(self.tolerances)

    def curve(self) -> list[tuple[float, float]]:
        """Every α at which C_α rises, and what it is from there on; begins at 0."""
        steps = sorted({0.0, *self.tolerances})
        return [(alpha, self.rate(alpha)) for alpha in steps]


def judge(
    set_name: str, benchmarks: Sequence[PairedBenchmark], options: BootstrapOptions
) -> Judgement:
    """The judgement on ``benchmarks``, of which there is at least one."""
    student_N = np.array([benchmark.student for benchmark in benchmarks])
    teacher_N = np.array([benchmark.teacher for benchmark in benchmarks])
    tolerances_N = needed_tolerances(student_N, teacher_N)
    items = [benchmark.items for benchmark in benchmarks]
    at_G: Floats = np.array(GRID)
    over_items = None
    if any(paired is not None for paired in items):
        resampled_RN = resample_items(student_N, teacher_N, items, options)
        over_items = band(resampled_RN, at_G, options.level)
    return Judgement(
        set_name=set_name,
        benchmarks=tuple(benchmarks),
        tolerances=tuple(map(float, tolerances_N)),
        alpha_star=float(critical_tolerances(tolerances_N)[0]),
        options=options,
        over_benchmarks=band(resample_benchmarks(tolerances_N, options), at_G, options.level),
        over_items=over_items,
    )


def judgement_json(judgement: Judgement) -> dict[str, Any]:
    """``judgement`` as JSON has it."""
    return {
        "benchmark_set": {"name": judgement.set_name, "size": len(judgement.benchmarks)},
        "benchmarks": [
            {
                "name": benchmark.name,
                "metric": benchmark.metric,
                "num_fewshot": benchmark.num_fewshot,
                "teacher": benchmark.teacher,
                "student": benchmark.student,
                "needed_tolerance": tolerance,
                "items": None if benchmark.items is None else len(benchmark.items.student),
            }
            for benchmark, tolerance in zip(judgement.benchmarks, judgement.tolerances, strict=True)
        ],
        "alpha_star": judgement.alpha_star,
        "c_0": judgement.rate(0.0),
        "lossless": judgement.is_lossless,
        "curve": judgement.curve(),
        "bootstrap": {
            "resamples": judgement.options.num_resamples,
            "level": judgement.options.level,
            "seed": judgement.options.seed,
            "over_benchmarks": _band_json(judgement.over_benchmarks),
            "over_items": judgement.over_items and _band_json(judgement.over_items),
        },
        "notes": [
            *filter(None, [judgement.unit_warning]),
            *(benchmark.note for benchmark in judgement.benchmarks if benchmark.note),
        ],
    }


def _band_json(found: Band) -> dict[str, Any]:
    low, high = found.rates
    return {
        "alpha_star": list(found.alpha_star),
        "lossless_share": found.lossless_share,
        "curve": [list(point) for point in zip(GRID, low.tolist(), high.tolist(), strict=True)],
    }
