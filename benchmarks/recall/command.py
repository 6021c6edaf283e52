"""Relational recall: can an mLSTM look up what attention looks up? Small models, from scratch.

A row shows pairs of key and value, noise, and the keys again in another order; a model is to give
each key's value (multi-query associative recall, arXiv 2312.04927). Models have equal width, depth
and heads, and an equal causal convolution over the embedding, which joins a value to the key before
it: without it, the Transformer of this size does not leave the level of guessing in 800 steps. They
are trained on labels alone, with one learning rate, on the same rows for each seed, until 98% of a
check's queries are right or the steps are over. Windows of all layers together end before the pairs
begin, as seen from a query, and sinks hold no pair. Accuracy is that of held-out rows; guessing
among a row's own values scores about 1 / pairs. ± is the standard deviation over seeds.

Expected, before it was run: full attention, the mLSTM in its place, the hybrid of mLSTM and window,
and xLSTM blocks with an mLSTM solve it at every length, attention in the fewest steps, since their
memories of a matrix for each head hold a few pairs; window and sinks alone guess; the sLSTM, whose
memory is a vector, is far below, and worse the longer the row; alternating blocks lie between.

With --work, each finished training is kept and not repeated, so that this may be stopped; with
--kept, what is finished so far is printed, and nothing trained.
"""

import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from benchmarks.quick import quick_option, show
from benchmarks.recall.table import case_line, table
from benchmarks.recall.trials import Trial, Trials


def _numbers(_: click.Context, parameter: click.Parameter, text: str) -> tuple[int, ...]:
    try:
        found = tuple(int(part) for part in text.split(","))
    except ValueError:
        found = ()
    if not found or min(found) < 1:
        raise click.BadParameter(f"{text!r}: expected positive numbers, such as 32,64")
    return found


@click.command("recall", help=__doc__)
@quick_option(lengths="24", steps=40, seeds=1)
@click.option("--lengths", default="24,48,96", show_default=True, callback=_numbers, help="Rows.")
@click.option("--pairs", default="4", show_default=True, callback=_numbers, help="In a row.")
@click.option("--steps", type=click.IntRange(min=1), default=600, show_default=True, help="Most.")
@click.option("--seeds", type=click.IntRange(min=1), default=3, show_default=True)
@click.option("--width", type=click.IntRange(min=8), default=64, show_default=True)
@click.option("--learning-rate", type=float, default=5e-3, show_default=True)
@click.option(
    "--work", type=click.Path(file_okay=False, path_type=Path), help="Keeps finished trainings."
)
@click.option("--kept", "is_kept_only", is_flag=True, help="Print what --work has; train nothing.")
@click.option(
    "--plot", type=click.Path(dir_okay=False, path_type=Path), help="Write accuracy as SVG or PNG."
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def recall(
    lengths: tuple[int, ...],
    pairs: tuple[int, ...],
    seeds: int,
    work: Path | None,
    is_kept_only: bool,
    plot: Path | None,
    as_json: bool,
    **options: Any,
) -> None:
    from benchmarks.recall.mixers import MIXERS, ModelSizes
    from benchmarks.recall.task import VOCABULARY
    from benchmarks.recall.training import TrainingSettings

    sizes = ModelSizes(vocabulary=VOCABULARY, width=options["width"])
    training = TrainingSettings(steps=options["steps"], learning_rate=options["learning_rate"])
    with ExitStack() as stack:
        if work is None:
            work = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        trials = Trials(work, sizes, training)
        cases = list(_cases(lengths, pairs, sizes.reach))
        rows: list[dict[str, Any]] = [
            {"pairs": num_pairs, "length": length, "mixer": mixer, "trainings": []}
            for num_pairs, length in cases
            for mixer in MIXERS
        ]
        for seed in range(seeds):  # so that all have one before any has two
            for row in rows:
                trial = Trial(row["mixer"], row["length"], row["pairs"], seed)
                found = trials.kept(trial) if is_kept_only else trials.figures(trial)
                if found is not None:
                    row["trainings"].append(found)
                    click.echo(case_line(row), err=True)
    rows = [row for row in rows if row["trainings"]]
    if not rows:
        raise click.UsageError("--kept: no training of these options is finished in --work")
    figures = {"sizes": asdict(sizes), "training": asdict(training), "rows": rows}
    if plot is not None:
        from benchmarks.recall.plot import save_plot

        save_plot(rows, plot)
    show(figures, as_json, lambda _: table(rows))


def _cases(
    lengths: tuple[int, ...], pairs: tuple[int, ...], reach: int
) -> Iterator[tuple[int, int]]:
    """Pairs and length of rows whose pairs the windows do not reach from the queries."""
    from benchmarks.recall.task import RecallTask

    found = 0
    for num_pairs in pairs:
        least = RecallTask.least_length(num_pairs, reach)
        for length in lengths:
            if length >= least:
                found += 1
                yield num_pairs, length
            else:
                click.echo(
                    f"{num_pairs} pairs in rows of {length}: left out, windows would reach them; "
                    f"rows of {least} are long enough",
                    err=True,
                )
    if not found:
        raise click.UsageError("--lengths: no row is long enough for --pairs; see above")
