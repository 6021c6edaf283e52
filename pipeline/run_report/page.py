"""A report as one HTML page, which fetches nothing and in which nothing runs but our script.

Every text goes through ``_text``: names, settings and figures come from files of whoever ran the
runs. Should one of them escape all the same, the page's policy (Content-Security-Policy) names the
hashes of our script and style alone, so that no other is run.
"""

import base64
import hashlib
from html import escape

from pipeline.reporting.printable import printable
from pipeline.run_report.charts.chart_svg import group_classes, svg
from pipeline.run_report.charts.make_charts import Chart
from pipeline.run_report.page_style import SCRIPT, STYLE
from pipeline.run_report.report import Report
from pipeline.run_report.table import Cell, Table


def page(report: Report, made: str) -> str:
    """The page; ``made`` says when and by what it was made."""
    title = _text(report.title)
    parts = [
        "<!doctype html>",
        '<html lang="en">',
        "<head>",
        '<meta charset="utf-8">',
        f'<meta http-equiv="Content-Security-Policy" content="{_policy()}">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<title>{title}</title>",
        f"<style>{STYLE}</style>",
        "</head>",
        "<body>",
        f"<h1>{title}</h1>",
        *(f'<p class="note">{_text(note)}</p>' for note in report.notes),
        *(_section(table) for table in report.results),
        *([] if report.differences is None else [_section(report.differences)]),
        *_curves(report),
        _section(report.costs),
        *(_details(table) for table in report.details),
        f"<p>{_text(made)}</p>",
        f"<script>{SCRIPT}</script>",
        "</body>",
        "</html>",
    ]
    return "\n".join(parts) + "\n"


def _policy() -> str:
    hashes = [
        base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        for text in (SCRIPT, STYLE)
    ]
    return (
        f"default-src 'none'; script-src 'sha256-{hashes[0]}'; style-src 'sha256-{hashes[1]}'; "
        "base-uri 'none'; form-action 'none'"
    )


def _text(text: str) -> str:
    return escape(printable(text, keep=""))


def _section(table: Table) -> str:
    return f"<section>\n<h2>{_text(table.title)}</h2>\n{_table(table)}\n</section>"


def _details(table: Table) -> str:
    return (
        f"<details>\n<summary>{_text(table.title)} ({len(table.rows)})</summary>\n{_table(table)}\n"
        "</details>"
    )


def _table(table: Table) -> str:
    first = table.rows[0] if table.rows else ()
    names = [cell.is_name for cell in first] or [False] * len(table.headings)
    headings = "".join(
        f'<th class="name">{_text(heading)}</th>' if is_name else f"<th>{_text(heading)}</th>"
        for heading, is_name in zip(table.headings, names, strict=True)
    )
    rows = "\n".join(f"<tr>{''.join(map(_cell, row))}</tr>" for row in table.rows)
    note = f"\n<p>{_text(table.note)}</p>" if table.note else ""
    return (
        f'<div class="scroll"><table>\n<thead><tr>{headings}</tr></thead>\n<tbody>\n{rows}\n'
        f"</tbody>\n</table></div>{note}"
    )


def _cell(cell: Cell) -> str:
    names = [name for name, is_set in (("name", cell.is_name), ("mark", cell.is_marked)) if is_set]
    attribute = f' class="{" ".join(names)}"' if names else ""
    return f"<td{attribute}>{_text(cell.text)}</td>"


def _curves(report: Report) -> list[str]:
    if not report.charts:
        return ["<p>The runs have not reported any figure yet.</p>"]
    buttons = [
        f'<button type="button" aria-pressed="true" data-group="{number}">'
        f'<svg class="swatch" viewBox="0 0 22 8" aria-hidden="true">'
        f'<line class="curve {group_classes(number)}" x1="0" x2="22" y1="4" y2="4"/></svg>'
        f"{_text(group.name)}</button>"
        for number, group in enumerate(report.groups)
    ]
    return [
        "<section>",
        "<h2>Curves</h2>",
        "<p>A thick line is the mean over the seeds of a recipe, or its only run; thin ones are "
        "its runs. The dashed grey line is the teacher. Choose recipes below; point at a chart to "
        "read its figures. Of a long curve, points are left out.</p>",
        f'<div class="legend">{"".join(buttons)}</div>',
        '<div class="charts">',
        *(_figure(chart) for chart in report.charts),
        "</div>",
        "</section>",
    ]


def _figure(chart: Chart) -> str:
    unit = f" <small>{_text(chart.y_label)}</small>" if chart.y_label else ""
    caption = f"<figcaption>{_text(chart.title)}{unit}</figcaption>"
    return f"<figure>\n{caption}\n{svg(chart)}\n</figure>"
