"""Tables of a report as lines."""

from pipeline.run_report.table import Cell, Table
from pipeline.run_report.table_text import table_text

_TABLE = Table(
    title="Results",
    headings=("rank", "recipe", "loss"),
    rows=(
        (Cell(text="1"), Cell(text="a", is_name=True), Cell(text="2.5")),
        (Cell(text="10"), Cell(text="b\x1b[1m", is_name=True), Cell(text="12.5")),
    ),
)


def test_names_are_aligned_at_the_left_and_numbers_at_the_right() -> None:
    assert table_text(_TABLE).splitlines() == [
        "rank  recipe    loss",
        "   1  a          2.5",
        "  10  b\\x1b[1m  12.5",
    ]


def test_columns_can_be_chosen() -> None:
    assert table_text(_TABLE, ("loss",)).splitlines() == ["loss", " 2.5", "12.5"]
