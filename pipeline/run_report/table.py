"""A table of a report, as cells of text, and how figures are written in one."""

from dataclasses import dataclass

from pipeline.run_report.recorded.seed_groups import Spread
from pipeline.run_report.recorded.settings import ABSENT

SHOWN_OF_HASH = 12
"""Digits."""


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One cell."""

    text: str
    is_name: bool = False
    """Text that is read from the left."""
    is_marked: bool = False
    """It is what is looked for: the best of a column, or a setting that differs."""


@dataclass(frozen=True, kw_only=True)
class Table:
    """One table; every row has as many cells as there are headings."""

    title: str
    headings: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    note: str = ""


def spread_text(spread: Spread | None, form: str) -> str:
    """ "MEAN ± DEVIATION"."""
    if spread is None:
        return ABSENT
    if spread.deviation is None:
        return format(spread.mean, form)
    return f"{spread.mean:{form}} ± {spread.deviation:{form}}"


def quantity(value: float, kind: str) -> str:
    """A count, bytes, seconds or a share as people read it."""
    if kind == "share":
        return f"{value:.1%}"
    if kind == "seconds":
        minutes, seconds = divmod(round(value), 60)
        hours, minutes = divmod(minutes, 60)
        return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
    for size, unit in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:.3g} {unit}{'B' if kind == 'bytes' else ''}"
    return f"{value:.0f}{' B' if kind == 'bytes' else ''}"
