"""``pipeline compare``: is one student better than another, or is it chance?"""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from pipeline.options.cache_location import RUN, CacheLocation
from pipeline.options.evaluation_options import (
    batch_size_option,
    device_option,
    resamples_option,
    rows_option,
    seed_option,
)
from pipeline.runtime.silence_libraries import silence_libraries

if TYPE_CHECKING:
    from cache_format.reader import Cache
    from pipeline.student_comparison.row_figures import RowFigures, RowOptions


@click.command()
@click.argument("first", type=RUN, metavar="A")
@click.argument("second", type=RUN, metavar="B")
@click.option(
    "--cache",
    type=CacheLocation(exists=True),
    help="A cache of both students' teacher, or its URL; by default the one that both learned "
    "from, if it is a directory that is still there.",
)
@rows_option()
@resamples_option(10_000, of="the rows")
@seed_option
@click.option(
    "--fresh", is_flag=True, help="Evaluate both anew, whatever was kept of an earlier comparison."
)
@batch_size_option
@device_option
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def compare(
    first: Path,
    second: Path,
    cache: Path | str | None,
    rows: int | None,
    resamples: int,
    seed: int,
    fresh: bool,
    batch_size: int,
    device: str,
    as_json: bool,
) -> None:
    """Tell whether one student is better than another.

    \b
      pipeline compare run run-2
      pipeline compare run run-2 --rows 256 --json

    A and B are runs, checkpoints or model directories. Prints loss, KL and agreement of both, the
    difference with its 95% interval from a paired bootstrap over rows, and whether it is real, for
    which it takes 30 rows at least.
    SHARE is twice the share of resamples on the other side of zero, like a p-value.

    What each row scored is kept in A/row-figures and B/row-figures: comparing the same students
    again takes no evaluation.

    The interval is about these two students. Whether their recipes differ needs several seeds of
    each: see `pipeline report`.
    """
    import json

    import cache_format
    from pipeline.judgement.bootstrap import BootstrapOptions
    from pipeline.reporting.printable import printable
    from pipeline.student_comparison.common_cache import (
        common_cache,
        origin_of,
        require_one_teacher,
    )
    from pipeline.student_comparison.comparison import (
        Comparison,
        compare_figures,
        comparison_json,
        comparison_text,
    )
    from pipeline.student_comparison.row_figures import RowOptions
    from pipeline.students.evaluation import EvalOptions
    from pipeline.students.student_files import require_student

    require_student(first)
    require_student(second)
    origins = origin_of(first), origin_of(second)
    require_one_teacher(*origins)
    opened = cache_format.open(cache if cache is not None else common_cache(*origins))
    silence_libraries()
    from stages.train_student.data.targets.kinds import kl_note
    from stages.train_student.data.temperatures import validation_temperature

    extent = EvalOptions(num_rows=rows, batch_size=batch_size, device=device)
    asked = RowOptions(extent=extent, is_fresh=fresh)
    one = _figures("A", first, cache, opened, asked)
    other = _figures("B", second, cache, opened, asked)
    options = BootstrapOptions(num_resamples=resamples, seed=seed)
    notes = [kl_note(opened.spec.targets)]
    notes += [
        f"{origin.name} was trained from another cache, so it may have been trained on these rows."
        for origin in origins
        if origin.cache_id is not None and not origin.learned_from(opened.cache_id)
    ]
    if one.model_sha256 == other.model_sha256:
        notes.append("A and B are the same student.")
    comparison = Comparison(
        names=(str(first), str(second)),
        figures=compare_figures(one, other, options),
        num_rows=len(one.rows),
        num_scored=sum(one.num_scored),
        cache=str(opened.path),
        cache_id=opened.cache_id,
        kl_temperature=validation_temperature(opened.spec.targets.inverse_temperatures),
        options=options,
        notes=tuple(notes),
    )
    if as_json:
        click.echo(json.dumps(comparison_json(comparison), indent=1))
    else:
        click.echo(printable(comparison_text(comparison)))


def _figures(
    name: str, place: Path, named: Path | str | None, cache: "Cache", options: "RowOptions"
) -> "RowFigures":
    from pipeline.reporting.printable import printable
    from pipeline.reporting.progress_bar import Bar
    from pipeline.student_comparison.row_figures import row_figures
    from pipeline.students.student_files import student_files

    def say(line: str) -> None:
        click.echo(printable(line), err=True)

    where = named if named is not None else cache.path
    with student_files(place, where, say) as student, Bar(f"evaluate {name}", unit=" rows") as bar:
        return row_figures(
            place, student, cache, options, lambda done, total: bar.show(done, total, ""), say
        )
