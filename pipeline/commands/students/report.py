"""``pipeline report``: many runs as one page, with curves, tables and what sets them apart."""

from collections.abc import Sequence
from pathlib import Path
from shlex import join
from typing import TYPE_CHECKING

import click

from pipeline.options.cache_location import LocalPath

if TYPE_CHECKING:
    from pipeline.run_report.report import Report


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
    help="Directory for index.html, report.md and charts/; an earlier report is replaced.",
)
@click.option(
    "--json",
    "json_file",
    type=LocalPath(dir_okay=False),
    metavar="FILE",
    help="Write the figures: means, deviations, differences by seed, and those of each run.",
)
@click.option(
    "--rank-by",
    type=click.Choice(["loss", "kl", "agreement", "accuracy"]),
    default="loss",
    show_default=True,
    help="The validation metric by which recipes are ranked.",
)
@click.option(
    "--baseline",
    metavar="RECIPE",
    help="The recipe, as the report calls it, that the others are compared with seed by seed; "
    "without this option the first in rank.",
)
def report(
    runs: Sequence[Path],
    out: Path | None,
    json_file: Path | None,
    rank_by: str,
    baseline: str | None,
) -> None:
    """Put runs side by side: results, curves, costs.

    \b
      pipeline report runs --out report
      pipeline report run run-2 --out report --rank-by kl
      pipeline report sweep --json sweep.json --baseline base

    DIR holds runs that train-student wrote with --out, finished or not, or is the directory of a
    sweep, of which the report says what has not begun or has failed, too. Runs whose recipes are
    equal but for the seed are one line, with mean ± standard deviation. Loss and KL compare only on
    one cache, so each cache has its own ranks.

    OUT/index.html is one file that fetches nothing; OUT/report.md has the tables, OUT/charts the
    curves as PNG. Reads run.json, recipe.toml and metrics.jsonl alone, and runs nothing of them.
    """
    from pipeline.reporting.printable import printable
    from pipeline.run_report.recorded.find_runs import find_runs
    from pipeline.run_report.report import make_report
    from pipeline.run_report.write_report import require_report_directory

    if out is None and json_file is None:
        raise click.UsageError("Nothing to write: give --out, --json or both.")
    if out is not None:
        require_report_directory(out)
    of_sweeps = [line for path in runs for line in _sweep_lines(path)]
    found = make_report(find_runs(runs), rank_by, baseline=baseline, notes=of_sweeps)
    lines = [f"{found.title}.", *found.notes]
    if json_file is not None:
        options = [] if baseline is None else ["--baseline", baseline]
        _write_json(found, runs, join(["pipeline", "report", *map(str, runs), *options]), json_file)
        lines[0] = f"{json_file}: {lines[0]}"
    if out is not None:
        _write_pages(found, out)
        lines[0] = f"{out / 'index.html'}: {found.title}."
    click.echo(printable("\n".join(lines)))


def _sweep_lines(path: Path) -> list[str]:
    """What has become of the runs of a sweep; nothing where ``path`` is none.

    Raises ValueError where none of its runs has begun.
    """
    from pipeline.ablation.running.sweep_status import is_sweep, sweep_status

    if not is_sweep(path):
        return []
    try:
        status = sweep_status(path)
    except (ValueError, OSError) as error:
        return [f"Which of the sweep's runs have not begun is not known: {error}"]
    if not status.has_begun:
        raise ValueError("\n".join([*status.lines(), "There is nothing to report yet."]))
    return status.lines()


def _write_json(found: "Report", runs: Sequence[Path], command: str, path: Path) -> None:
    import json

    from cache_format.storage.atomic import make_directory, publish_bytes
    from pipeline.ablation.running.sweep_status import is_sweep, sweep_text
    from pipeline.run_report.summary import summary

    document = summary(found, command)
    document["sweeps"] = [sweep_text(each) for each in runs if is_sweep(each)]
    make_directory(path.absolute().parent)
    publish_bytes(path, (json.dumps(document, indent=1, ensure_ascii=False) + "\n").encode())


def _write_pages(found: "Report", out: Path) -> None:
    from datetime import UTC, datetime
    from importlib.metadata import version

    from pipeline.reporting.progress_bar import Bar
    from pipeline.run_report.write_report import write_report

    made = (
        f"Made by pipeline report of xlstm-distill {version('xlstm-distill')}, "
        f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC."
    )
    with Bar("draw", unit=" charts") as bar:
        write_report(found, out, made, lambda done, total: bar.show(done, total, ""))
