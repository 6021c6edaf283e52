"""The comparison of two students from what each scored on the same rows.

In: two ``RowFigures``. Out: loss, KL and agreement of both, and their differences with intervals.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from pipeline.judgement.bootstrap import BootstrapOptions
from pipeline.student_comparison.paired_bootstrap import Difference, paired_difference
from pipeline.student_comparison.row_figures import RowFigures

FEW_ROWS = 30
"""Fewer give an interval that is too narrow (of one row, a point), so nothing is concluded."""


@dataclass(frozen=True, kw_only=True)
class ComparedFigure:
    """One figure of both students."""

    name: str
    first: float
    second: float
    difference: Difference
    is_lower_better: bool


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Two students on the same rows of one cache."""

    names: tuple[str, str]
    figures: tuple[ComparedFigure, ...]
    """Loss, KL, agreement."""
    num_rows: int
    num_scored: int
    """Positions."""
    cache: str
    cache_id: str
    kl_temperature: float
    options: BootstrapOptions
    notes: tuple[str, ...] = ()

    @property
    def has_few_rows(self) -> bool:
        """Whether the rows are too few to tell whether a difference is real."""
        return self.num_rows < FEW_ROWS

    @property
    def rows_text(self) -> str:
        """How many rows, in words."""
        return "1 row" if self.num_rows == 1 else f"{self.num_rows:,} rows"


_FIGURES: tuple[tuple[str, Callable[[RowFigures], tuple[float, ...]], bool], ...] = (
    ("loss", lambda figures: figures.cross_entropy, True),
    ("kl", lambda figures: figures.kl, True),
    ("agreement", lambda figures: figures.num_agreeing, False),
)


def compare_figures(
    first: RowFigures, second: RowFigures, options: BootstrapOptions
) -> tuple[ComparedFigure, ...]:
    """Figures of two students. Raises ValueError where their rows are not the same ones."""
    one = (first.cache_id, first.validation_sha256, first.rows, first.num_scored)
    other = (second.cache_id, second.validation_sha256, second.rows, second.num_scored)
    if one != other:
        raise ValueError(
            "the two students were evaluated on other rows: a paired comparison needs the same "
            "rows of the same cache. Compare them again with --fresh."
        )
    num_scored_I = np.asarray(first.num_scored, np.float64)
    found = []
    for name, column, is_lower_better in _FIGURES:
        first_I, second_I = (np.asarray(column(each), np.float64) for each in (first, second))
        difference = paired_difference(first_I, second_I, num_scored_I, options)
        total = num_scored_I.sum()
        found.append(
            ComparedFigure(
                name=name,
                first=float(first_I.sum() / total),
                second=float(second_I.sum() / total),
                difference=difference,
                is_lower_better=is_lower_better,
            )
        )
    return tuple(found)


def comparison_json(comparison: Comparison) -> dict[str, Any]:
    """``comparison`` as JSON has it."""
    return {
        "a": comparison.names[0],
        "b": comparison.names[1],
        "cache": comparison.cache,
        "cache_id": comparison.cache_id,
        "rows": comparison.num_rows,
        "positions": comparison.num_scored,
        "kl_temperature": comparison.kl_temperature,
        "figures": {
            figure.name: {
                "a": figure.first,
                "b": figure.second,
                "difference": figure.difference.value,
                "interval": [figure.difference.low, figure.difference.high],
                "share": figure.difference.share,
                "is_real": None if comparison.has_few_rows else figure.difference.is_real,
            }
            for figure in comparison.figures
        },
        "bootstrap": {
            "resamples": comparison.options.num_resamples,
            "level": comparison.options.level,
            "seed": comparison.options.seed,
        },
        "verdicts": [verdict(comparison, figure) for figure in comparison.figures],
        "notes": list(comparison.notes),
    }


def comparison_text(comparison: Comparison) -> str:
    """``comparison`` as a table for people, and what it means."""
    level = f"{comparison.options.level:.0%} interval"
    rows = [["", "A", "B", "B − A", level, "share"]]
    for figure in comparison.figures:
        gap, form = figure.difference, ".2%" if figure.name == "agreement" else ".4f"
        rows.append(
            [
                _label(figure, comparison.kl_temperature),
                format(figure.first, form),
                format(figure.second, form),
                format(gap.value, f"+{form}"),
                f"{gap.low:+{form}} to {gap.high:+{form}}",
                f"{gap.share:.2g}",
            ]
        )
        if figure.name == "loss":
            perplexities = [_perplexity(loss) for loss in (figure.first, figure.second)]
            rows.append(["perplexity", *perplexities, "", "", ""])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    table = [
        "  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]).rstrip()
        for row in rows
    ]
    names = [f"{letter}: {name}" for letter, name in zip("AB", comparison.names, strict=True)]
    extent = (
        f"{comparison.cache}: {comparison.rows_text} of the validation split, "
        f"{comparison.num_scored:,} scored positions, "
        f"{comparison.options.num_resamples:,} resamples of the rows."
    )
    verdicts = [verdict(comparison, figure) for figure in comparison.figures]
    return "\n".join([*names, "", *table, "", *verdicts, "", extent, *comparison.notes])


def verdict(comparison: Comparison, figure: ComparedFigure) -> str:
    """Whether the difference is real, in a sentence."""
    label, gap = _label(figure, comparison.kl_temperature), figure.difference
    if comparison.has_few_rows:
        found = comparison.rows_text
        return f"{label}: too few rows to tell: {found}, expected {FEW_ROWS} or more."
    if gap.is_real:
        is_second_better = (gap.value < 0) == figure.is_lower_better
        better, worse = ("B", "A") if is_second_better else ("A", "B")
        return (
            f"{label}: the difference is real: {better} is better than {worse}, by {_size(figure)}."
        )
    return f"{label}: no difference is shown: the interval includes 0."


def _label(figure: ComparedFigure, temperature: float) -> str:
    return f"KL(T={temperature:.3g})" if figure.name == "kl" else figure.name


def _size(figure: ComparedFigure) -> str:
    size = abs(figure.difference.value)
    return f"{size * 100:.3g} points" if figure.name == "agreement" else f"{size:.4g} nats"


def _perplexity(loss: float) -> str:
    return f"{math.exp(loss):.1f}" if loss < 700 else "–"
