"""The tables of a report beside its results: how runs differ, and what they took.

In: groups of runs. Out: costs, differences of the recipes, runs, data and environment.
"""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from pipeline.run_report.recorded.recorded_run import RecordedRun
from pipeline.run_report.recorded.run_costs import RunCosts, run_costs, run_data
from pipeline.run_report.recorded.seed_groups import SeedGroup, initial_weights
from pipeline.run_report.recorded.settings import (
    ABSENT,
    SEED,
    all_settings,
    deciding_settings,
    differing_settings,
    usual_value,
)
from pipeline.run_report.table import SHOWN_OF_HASH, Cell, Table, quantity

if TYPE_CHECKING:
    from stages.train_student.checkpoints.run_record import RunRecord

_BEGINS_FROM = "begins from"


def costs_table(groups: Sequence[SeedGroup]) -> Table:
    """Means over the counted runs of each group."""
    costs = {run.path: run_costs(run) for group in groups for run in group.runs}

    def cell(group: SeedGroup, figure: Callable[[RunCosts], float | None], kind: str) -> Cell:
        spread = group.spread(lambda run: figure(costs[run.path]))
        return Cell(text=ABSENT if spread is None else quantity(spread.mean, kind))

    rows = [
        (
            Cell(text=group.name, is_name=True),
            cell(group, lambda each: each.tokens, "count"),
            cell(group, lambda each: each.bytes_read, "bytes"),
            cell(group, lambda each: each.seconds, "seconds"),
            cell(group, lambda each: each.tokens_per_second, "count"),
            cell(group, lambda each: each.loader_wait_share, "share"),
            cell(group, lambda each: each.peak_bytes, "bytes"),
        )
        for group in groups
    ]
    return Table(
        title="Cost of a run",
        headings=(
            *("recipe", "tokens", "read from the cache", "training time", "tokens/s"),
            *("waiting for the cache", "peak memory"),
        ),
        rows=tuple(rows),
        note="Means over runs. Training time is that of optimizer steps, by the speed of the "
        "reported ones; validation and saving are not counted. What is read is the size of the "
        "shards for each pass over them.",
    )


def differences_table(groups: Sequence[SeedGroup]) -> Table | None:
    """Settings in which the recipes differ, what is unusual marked; None where none does.

    Initial weights are one of them. Which they are, their hash tells: the place alone may differ.
    """
    tables = [deciding_settings(group.runs[0]) for group in groups]
    if len({initial_weights(group) for group in groups}) > 1:
        tables = [
            {_BEGINS_FROM: _beginning(group), **table}
            for group, table in zip(groups, tables, strict=True)
        ]
    keys = [key for key in differing_settings(tables) if key != SEED]
    if not keys:
        return None
    usual = {key: usual_value(tables, key) for key in keys}
    rows = [
        (
            Cell(text=group.name, is_name=True),
            *(
                Cell(
                    text=table.get(key, ABSENT),
                    is_marked=table.get(key, ABSENT) != usual[key],
                )
                for key in keys
            ),
        )
        for group, table in zip(groups, tables, strict=True)
    ]
    return Table(
        title="Differences of the recipes",
        headings=("recipe", *keys),
        rows=tuple(rows),
        note="Marked: not what most have. All other settings that decide a result are equal.",
    )


def runs_table(groups: Sequence[SeedGroup]) -> Table:
    """Every run and what has become of it."""
    rows = [
        (
            Cell(text=run.name, is_name=True),
            Cell(text=group.name, is_name=True),
            Cell(text=str(run.identity.get(SEED, ABSENT))),
            Cell(
                text=run.state_text,
                is_name=True,
                is_marked=run.state in ("stopped", "unreadable"),
            ),
            Cell(text=run.cache_id[:SHOWN_OF_HASH], is_name=True),
        )
        for group in groups
        for run in group.runs
    ]
    headings = ("run", "recipe", "seed", "state", "cache")
    return Table(title="Runs", headings=headings, rows=tuple(rows))


def data_table(runs: Sequence[RecordedRun]) -> Table:
    """The caches, and the teachers that made them."""
    by_cache: dict[str, list[RecordedRun]] = {}
    for run in runs:
        if run.record is not None:
            by_cache.setdefault(run.cache_id, []).append(run)
    rows = []
    for cache_id, found in by_cache.items():
        record, data = found[0].record, run_data(found[0])
        teacher = found[0].identity.get("teacher")
        teacher = teacher if isinstance(teacher, dict) else {}
        names = [str(teacher[key]) for key in ("source", "revision") if teacher.get(key)]
        rows.append(
            (
                Cell(text=cache_id, is_name=True),
                Cell(text=_locations(record), is_name=True),
                Cell(text=" at ".join(names) or ABSENT, is_name=True),
                Cell(text=str(teacher.get("weights_sha256", ABSENT))[:SHOWN_OF_HASH]),
                Cell(text=_count(found[0].identity.get("num_train_rows"))),
                Cell(text=_count(found[0].identity.get("num_validation_rows"))),
                Cell(text=ABSENT if data is None else _count(data.sequence_length)),
                Cell(text=str(len(found))),
            )
        )
    return Table(
        title="Caches",
        headings=(
            *("cache_id", "location", "teacher", "teacher's weights"),
            *("training rows", "validation rows", "positions of a row", "runs"),
        ),
        rows=tuple(rows),
    )


def environment_table(runs: Sequence[RecordedRun]) -> Table:
    """What the runs recorded of versions and machines; runs of equal ones share a row."""
    found: dict[tuple[tuple[str, str], ...], list[str]] = {}
    for run in runs:
        if run.record is not None:
            environment = dict(run.record.environment or {})
            for key in ("precision", "parallel"):
                if key in (settings := all_settings(run)):
                    environment[key] = settings[key]
            found.setdefault(tuple(sorted(environment.items())), []).append(run.name)
    keys = sorted({key for environment in found for key, _ in environment})
    rows = [
        (
            Cell(text=_listed(names), is_name=True),
            *(Cell(text=dict(environment).get(key, ABSENT), is_name=True) for key in keys),
        )
        for environment, names in found.items()
    ]
    return Table(
        title="Environment",
        headings=("runs", *keys),
        rows=tuple(rows),
        note="As it was when a run began. Runs of older versions recorded less.",
    )


def settings_table(groups: Sequence[SeedGroup]) -> Table:
    """The settings that all recipes have in common."""
    tables = [all_settings(run) for group in groups for run in group.runs if run.record is not None]
    differing = set(differing_settings(tables))
    common = {key: text for key, text in (tables or [{}])[0].items() if key not in differing}
    rows = [(Cell(text=key, is_name=True), Cell(text=common[key])) for key in sorted(common)]
    return Table(title="Settings that all have", headings=("setting", "value"), rows=tuple(rows))


def _beginning(group: SeedGroup) -> str:
    """What the runs of ``group`` begin from, in words."""
    weights = initial_weights(group)
    if not weights:
        return "random weights"
    hashes = ", ".join(each[:SHOWN_OF_HASH] for each in weights)
    if len(weights) > 1:
        return f"weights of its own for each seed ({hashes})"
    record = group.runs[0].record
    place = None if record is None else record.init_location
    return f"weights {hashes}" if place is None else f"{place} (weights {hashes})"


def _locations(record: "RunRecord | None") -> str:
    return "" if record is None else ", ".join(record.cache_locations)


def _listed(names: Sequence[str]) -> str:
    shown = ", ".join(names[:6])
    return shown if len(names) <= 6 else f"{shown} and {len(names) - 6} more"


def _count(value: object) -> str:
    return f"{value:,}" if type(value) is int else ABSENT
