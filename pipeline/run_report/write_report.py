"""Write a report: ``index.html``, ``report.md`` and ``charts/*.png`` in a directory of its own.

In: a report. Out: the directory, whole or as it was before.
"""

import os
from collections.abc import Callable
from pathlib import Path

from pipeline.run_report.markdown import markdown
from pipeline.run_report.page import page
from pipeline.run_report.report import Report

_PAGE, _TEXT, _CHARTS = "index.html", "report.md", "charts"


def require_report_directory(out: Path) -> None:
    """Raise ValueError where ``out`` holds anything but an earlier report, which is replaced."""
    if not os.path.lexists(out):
        return
    names = {path.name for path in out.iterdir()} if out.is_dir() else {out.name}
    charts = out / _CHARTS
    has_others = bool(names - {_PAGE, _TEXT, _CHARTS}) or (
        charts.is_dir() and any(path.suffix != ".png" for path in charts.iterdir())
    )
    if has_others or out.is_symlink():
        raise ValueError(
            f"{out}: holds something other than an earlier report, which would be replaced. Choose "
            "another directory with --out."
        )


def write_report(
    report: Report, out: Path, made: str, told: Callable[[int, int], None] = lambda *_: None
) -> None:
    """Write ``report`` to ``out``; ``told`` gets charts drawn and charts in all.

    Raises ValueError where ``out`` is not a report's.
    """
    from cache_format.storage.atomic import make_directory, replace_directory
    from pipeline.run_report.charts.chart_png import write_png

    require_report_directory(out)
    make_directory(out.absolute().parent)
    with replace_directory(out.absolute()) as directory:
        (directory / _PAGE).write_text(page(report, made), encoding="utf-8")
        (directory / _TEXT).write_text(markdown(report, made), encoding="utf-8")
        (directory / _CHARTS).mkdir()
        for number, chart in enumerate(report.charts, 1):
            write_png(chart, directory / _CHARTS / f"{chart.slug}.png")
            told(number, len(report.charts))
