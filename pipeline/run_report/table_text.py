"""A report's table as lines of text: for a terminal."""

from collections.abc import Collection

from pipeline.reporting.printable import printable
from pipeline.run_report.table import Table


def table_text(table: Table, headings: Collection[str] | None = None) -> str:
    """``table`` in aligned columns, those of ``headings`` alone if they are given."""
    chosen = [
        number
        for number, heading in enumerate(table.headings)
        if headings is None or heading in headings
    ]
    rows = [[table.headings[number] for number in chosen]]
    rows += [[printable(row[number].text, keep="") for number in chosen] for row in table.rows]
    is_name = [bool(table.rows) and table.rows[0][number].is_name for number in chosen]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if is_left else cell.rjust(width)
            for cell, width, is_left in zip(row, widths, is_name, strict=True)
        ).rstrip()
        for row in rows
    )
