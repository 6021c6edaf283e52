"""``pipeline report``: many runs as one page, with curves, tables and what sets them apart."""

from collections.abc import Sequence
from pathlib import Path

import click

from pipeline.options.cache_location import LocalPath


@click.command()
@click.argument(
    "runs",
    type=LocalPath(exists=True, file_okay=False, expected="a run, or a directory of runs"),
    nargs=-1,
    required=True,
    metavar="DIR|RUN...",
)
@click.option(
    "--out",
    type=LocalPath(file_okay=False, expected="a new directory, or that of an earlier report"),
    required=True,
    help="Directory for index.html, report.md and charts/; an earlier report is replaced.",
)
@click.option(
    "--rank-by",
    type=click.Choice(["loss", "kl", "agreement", "accuracy"]),
    default="loss",
    show_default=True,
    help="The validation metric by which recipes are ranked.",
)
def report(runs: Sequence[Path], out: Path, rank_by: str) -> None:
    """Put runs side by side: results, curves, costs.

    \b
      pipeline report runs --out report
      pipeline report run run-2 --out report --rank-by kl

    DIR holds runs that train-student wrote with --out, finished or not. Runs whose recipes are
    equal but for the seed are one line, with mean ± standard deviation. Loss and KL compare only on
    one cache, so each cache has its own ranks.

    OUT/index.html is one file that fetches nothing; OUT/report.md has the tables, OUT/charts the
    curves as PNG. Reads run.json, recipe.toml and metrics.jsonl alone, and runs nothing of them.
    """
    from datetime import UTC, datetime
    from importlib.metadata import version

    from pipeline.reporting.printable import printable
    from pipeline.reporting.progress_bar import Bar
    from pipeline.run_report.recorded.find_runs import find_runs
    from pipeline.run_report.report import make_report
    from pipeline.run_report.write_report import require_report_directory, write_report

    require_report_directory(out)
    found = make_report(find_runs(runs), rank_by)
    made = (
        f"Made by pipeline report of xlstm-distill {version('xlstm-distill')}, "
        f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC."
    )
    with Bar("draw", unit=" charts") as bar:
        write_report(found, out, made, lambda done, total: bar.show(done, total, ""))
    lines = [f"{out / 'index.html'}: {found.title}.", *found.notes]
    click.echo(printable("\n".join(lines)))
