"""A report before it is written: tables, charts, and what has to be said about them.

In: runs. Out: a ``Report``, which ``page`` and ``markdown`` write.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from pipeline.run_report.charts.make_charts import Chart, make_charts
from pipeline.run_report.recorded.recorded_run import RecordedRun
from pipeline.run_report.recorded.seed_groups import (
    ComparableGroups,
    SeedGroup,
    comparable,
    group_runs,
)
from pipeline.run_report.report_tables import (
    costs_table,
    data_table,
    differences_table,
    environment_table,
    runs_table,
    settings_table,
)
from pipeline.run_report.results_tables import caches_table, paired_table, results_table
from pipeline.run_report.table import Table

RANKS = {"loss": True, "kl": True, "agreement": False, "accuracy": False}
"""What groups can be ranked by, and whether lower is better."""


@dataclass(frozen=True, kw_only=True)
class Report:
    """Everything that a page shows, in its order."""

    title: str
    notes: tuple[str, ...]
    results: tuple[Table, ...]
    """One for each set of runs that compare; differences by seed; each of several caches."""
    sets: tuple[ComparableGroups, ...]
    """What ``results`` are of."""
    baseline: str | None
    """What recipes are compared with by seed; None: the first in rank."""
    costs: Table
    differences: Table | None
    charts: tuple[Chart, ...]
    groups: tuple[SeedGroup, ...]
    details: tuple[Table, ...]
    """Runs, caches, environment, common settings."""


def make_report(
    runs: Sequence[RecordedRun],
    rank_by: str,
    *,
    baseline: str | None = None,
    notes: Sequence[str] = (),
) -> Report:
    """The report on ``runs``, ranked by the validation metric ``rank_by``; ``notes`` come first.

    Raises ValueError where no recipe is called ``baseline``.
    """
    readable = [run for run in runs if run.record is not None]
    sets = comparable(group_runs(readable), f"validation/{rank_by}", is_lower_better=RANKS[rank_by])
    # In the order of the results, so that a group's colour follows its rank.
    groups = [group for found in sets for group in found.groups]
    if baseline is not None and baseline not in (names := [group.name for group in groups]):
        raise ValueError(f"{baseline!r} is none of the recipes: {', '.join(names)}.")
    unreadable = group_runs([run for run in runs if run.record is None])
    num_recipes = f"of {len(groups)} recipe{'' if len(groups) == 1 else 's'}"
    if not groups:
        num_recipes = "that cannot be read"
    return Report(
        title=f"{len(runs)} run{'' if len(runs) == 1 else 's'} {num_recipes}",
        notes=(*notes, *_notes(runs, [found.cache_id for found in sets])),
        results=tuple(table for found in sets for table in _results(found, baseline)),
        sets=tuple(sets),
        baseline=baseline,
        costs=costs_table(groups),
        differences=differences_table(groups),
        charts=tuple(make_charts(groups)),
        groups=tuple(groups),
        details=(
            runs_table([*groups, *unreadable]),
            data_table(runs),
            environment_table(runs),
            settings_table(groups),
        ),
    )


def _results(found: ComparableGroups, baseline: str | None) -> list[Table]:
    tables = (results_table(found), paired_table(found, baseline), caches_table(found))
    return [table for table in tables if table is not None]


def _notes(runs: Sequence[RecordedRun], cache_ids: Sequence[str]) -> list[str]:
    notes = []
    if len(set(cache_ids)) > 1:
        notes.append(
            f"These runs learned from {len(set(cache_ids))} caches. Loss and KL compare only "
            "within one cache: each has a table and ranks of its own, and in charts only lines of "
            "the same cache compare."
        )
    if len(cache_ids) > len(set(cache_ids)):
        notes.append(
            "Some runs of a cache were validated on other rows than the rest: they have a table "
            "of their own."
        )
    counts = {state: sum(run.state == state for run in runs) for state in _UNFINISHED}
    unfinished = [
        f"{count} {text}" for state, text in _UNFINISHED.items() if (count := counts[state])
    ]
    if unfinished:
        notes.append(
            f"Not all runs have finished: {', '.join(unfinished)}. Figures of a recipe are of its "
            "finished runs; where it has none, of the newest validations, and not ranked before "
            "finished ones."
        )
    return notes + [problem for run in runs for problem in run.problems]


_UNFINISHED = {
    "running": "running",
    "stopped": "failed or interrupted (no process of this machine is in it)",
    "unreadable": "unreadable",
}
