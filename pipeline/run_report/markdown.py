"""A report's tables as Markdown, to be put into an issue or a text.

What comes from files of whoever ran the runs is text: no cell can end its row, and none is read as
HTML, link or picture.
"""

import re

from pipeline.reporting.printable import printable
from pipeline.run_report.report import Report
from pipeline.run_report.table import Cell, Table

_SPECIAL = re.compile(r"([\\`*_{}\[\]<>()#!|~&])")
_ADDRESS = re.compile(r"\b(https?|ftp|www)(?=[:.])", re.IGNORECASE)


def markdown(report: Report, made: str) -> str:
    """All tables, and the names of the pictures beside it."""
    tables = [*report.results, report.costs]
    if report.differences is not None:
        tables.insert(len(report.results), report.differences)
    parts = [f"# {_text(report.title)}"]
    parts += [f"> {_text(note)}" for note in report.notes]
    parts += [_table(table) for table in (*tables, *report.details)]
    if report.charts:
        parts += ["## Curves"]
        parts += [f"![{_text(each.title)}](charts/{each.slug}.png)" for each in report.charts]
    return "\n\n".join([*parts, _text(made)]) + "\n"


def _table(table: Table) -> str:
    first = table.rows[0] if table.rows else ()
    rules = [":--" if cell.is_name else "--:" for cell in first] or ["--"] * len(table.headings)
    lines = [
        f"## {_text(table.title)}",
        "",
        _row([_text(heading) for heading in table.headings]),
        _row(rules),
        *(_row([_cell(cell) for cell in row]) for row in table.rows),
    ]
    return "\n".join([*lines, "", _text(table.note)] if table.note else lines)


def _row(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _cell(cell: Cell) -> str:
    text = _text(cell.text)
    return f"**{text}**" if cell.is_marked and text.strip() else text


def _text(text: str) -> str:
    escaped = _SPECIAL.sub(r"\\\1", printable(text, keep=""))
    # An address by itself becomes a link in many readers.
    return _ADDRESS.sub(lambda match: f"{match[0]}\u200b", escaped)
