"""``pipeline win-and-tie``: is a student as good as its teacher, and on which benchmarks?"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from pipeline.options.cache_location import LocalPath
from pipeline.options.evaluation_options import resamples_option, seed_option
from pipeline.options.reporting_options import require_writable_place

if TYPE_CHECKING:
    from pipeline.judgement.lm_eval_results import BenchmarkResult
    from pipeline.judgement.paired_scores import BenchmarkSet

_RESULTS = LocalPath(exists=True)


@click.command("win-and-tie")
@click.argument("student", type=_RESULTS, nargs=-1, required=True, metavar="STUDENT...")
@click.option(
    "--teacher",
    type=_RESULTS,
    multiple=True,
    required=True,
    help="Results of the teacher; repeat it where they are in several files.",
)
@click.option(
    "--suite",
    metavar="NAME[:PART]",
    help="Judge by the benchmarks and metrics of this suite, or of a TOML file.",
)
@click.option(
    "--benchmark",
    "named",
    multiple=True,
    metavar="NAME[=METRIC]",
    help="Judge by this benchmark; repeat it for each. METRIC is one of the result file's, with "
    "its filter if it has one.",
)
@resamples_option(2000, of="each band")
@seed_option
@click.option("--png", type=LocalPath(dir_okay=False), help="Write the C_α curve as a picture.")
@click.option(
    "--html",
    type=LocalPath(dir_okay=False),
    help="Write curve and table as one HTML file that fetches nothing.",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def win_and_tie(
    student: Sequence[Path],
    teacher: Sequence[Path],
    suite: str | None,
    named: Sequence[str],
    resamples: int,
    seed: int,
    png: Path | None,
    html: Path | None,
    as_json: bool,
) -> None:
    """Judge a student against its teacher by Win-and-Tie.

    \b
      pipeline win-and-tie student-results --teacher teacher-results --suite paper-base

    STUDENT and --teacher are result files of lm-evaluation-harness, or directories that
    `pipeline evaluate --out` wrote. C_α is the share of benchmarks on which the student has at
    least 1 − α of the teacher's score, α* the least α with C_α ≥ 0.5; with C_0 ≥ 0.5 the student is
    lossless (arXiv 2603.15590). These hold for the benchmark set that is printed with them.

    Confidence bands are bootstrapped over benchmarks and, where samples_*.jsonl of both lie beside
    the result files, over items.
    """
    if suite is not None and named:
        raise click.UsageError("give --suite or --benchmark, not both")
    for option, file in (("--png", png), ("--html", html)):
        if file is not None:
            require_writable_place(file, option)
    import json

    from pipeline.judgement.bootstrap import BootstrapOptions
    from pipeline.judgement.judgement import judge, judgement_json
    from pipeline.judgement.judgement_text import judgement_text
    from pipeline.judgement.lm_eval_results import read_results
    from pipeline.judgement.paired_scores import pair_scores
    from pipeline.reporting.printable import printable

    own, other = read_results(student), read_results(teacher)
    chosen = _benchmark_set(suite, named, own, other)
    options = BootstrapOptions(num_resamples=resamples, seed=seed)
    judgement = judge(chosen.name, pair_scores(own, other, chosen), options)
    if png is not None:
        from pipeline.judgement.curve_plot import write_png

        write_png(judgement, png)
    if html is not None:
        from pipeline.judgement.judgement_page import write_page

        write_page(judgement, html)
    if as_json:
        click.echo(json.dumps(judgement_json(judgement), indent=1))
    else:
        click.echo(printable(judgement_text(judgement)))


def _benchmark_set(
    suite: str | None,
    named: Sequence[str],
    student: "dict[str, BenchmarkResult]",
    teacher: "dict[str, BenchmarkResult]",
) -> "BenchmarkSet":
    from pipeline.judgement.paired_scores import common_set, named_set, suite_set
    from pipeline.judgement.suite import load_suite

    if suite is not None:
        return suite_set(load_suite(suite))
    if not named:
        return common_set(student, teacher)
    metrics: dict[str, str | None] = {}
    for text in named:
        name, _, metric = text.partition("=")
        if name in metrics:
            raise click.UsageError(f"--benchmark {name} is given twice")
        metrics[name] = metric or None
    return named_set(metrics)
