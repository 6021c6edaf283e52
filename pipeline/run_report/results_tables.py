"""The tables of final figures: of recipes, ranked, and of each on several caches.

In: groups of runs that compare. Out: tables.
"""

from collections.abc import Sequence

from pipeline.run_report.recorded.paired_differences import paired_difference
from pipeline.run_report.recorded.seed_groups import ComparableGroups, SeedGroup
from pipeline.run_report.recorded.settings import ABSENT
from pipeline.run_report.table import SHOWN_OF_HASH, Cell, Table, spread_text
from stages.train_student.tracking.metric_labels import VALIDATION, cache_labels, of_cache

GRADIENT_NORM = "train/gradient_norm"
_LEFT_OUT = ("validation/teacher_loss",)
_OF_CACHE = ("validation/loss", "validation/kl", "validation/agreement", "validation/accuracy")
_COLUMNS = {
    label.key: (label.column or label.progress or "", label.format)
    for label in VALIDATION
    if label.key not in _LEFT_OUT
} | {GRADIENT_NORM: ("gradient norm", ".2f")}
_HIGHER_IS_BETTER = ("validation/agreement", "validation/accuracy")
_NEITHER = ("validation/mlstm_share", GRADIENT_NORM)
PAIRED = ("validation/loss", "validation/kl", "validation/agreement")
"""What is compared seed by seed."""


def results_table(found: ComparableGroups) -> Table:
    """Final figures of groups that compare, best first; and the teacher's loss on these rows."""
    keys = [key for key in _COLUMNS if any(group.final(key) for group in found.groups)]
    best = {key: _best(found.groups, key) for key in keys}
    rows = []
    for number, group in enumerate(found.groups, 1):
        is_ranked = group.is_finished and group.final("validation/loss") is not None
        cells = [
            Cell(text=str(number) if is_ranked else ABSENT),
            Cell(text=group.name, is_name=True),
            Cell(text=_runs_text(group), is_name=True),
        ]
        for key in keys:
            spread = group.final(key)
            is_best = len(found.groups) > 1 and group.name == best[key] and group.is_finished
            text = spread_text(spread, _COLUMNS[key][1])
            if spread is not None and spread.num_runs < len(group.counted):
                text += f" ({spread.num_runs} of {len(group.counted)} runs)"
            cells.append(Cell(text=text, is_marked=is_best))
        rows.append(tuple(cells))
    headings = map(_heading, keys)
    return Table(
        title=f"Results on cache {found.cache_id[:SHOWN_OF_HASH]}",
        headings=("rank", "recipe", "runs", *headings),
        rows=tuple(rows),
        note=_results_note(found),
    )


def result_columns(found: ComparableGroups) -> dict[str, tuple[str, str]]:
    """Heading and format of each metric that any of these groups has."""
    return {
        key: (_heading(key), form)
        for key, (_, form) in _COLUMNS.items()
        if any(group.final(key) for group in found.groups)
    }


def paired_with(found: ComparableGroups, baseline: str | None) -> SeedGroup | None:
    """The group that the others are compared with: ``baseline`` by name, or the first in rank.

    None where it is the only one, or not of this set.
    """
    groups = [group for group in found.groups if baseline in (None, group.name)]
    return groups[0] if groups and len(found.groups) > 1 else None


def paired_table(found: ComparableGroups, baseline: str | None) -> Table | None:
    """Differences of recipes, seed by seed; None where no two have a seed in common."""
    base = paired_with(found, baseline)
    if base is None:
        return None
    keys = [key for key in PAIRED if base.final(key)]
    rows = []
    for group in found.groups:
        spreads = {key: paired_difference(group, base, key) for key in keys}
        pairs = {spread.num_runs for spread in spreads.values() if spread is not None}
        if group is base or not pairs:
            continue
        cells = [Cell(text=group.name, is_name=True), Cell(text=str(max(pairs)))]
        forms = [_COLUMNS[key][1].replace(".", "+.", 1) for key in keys]
        texts = map(spread_text, spreads.values(), forms)
        # A deviation has no sign.
        cells += [Cell(text=text.replace("± +", "± ")) for text in texts]
        rows.append(tuple(cells))
    if not rows:
        return None
    return Table(
        title=f"Differences to {base.name}, seed by seed ({found.cache_id[:SHOWN_OF_HASH]})",
        headings=("recipe", "seeds", *map(_heading, keys)),
        rows=tuple(rows),
        note=(
            f"The mean of recipe − {base.name} over the seeds that both have finished once; ± is "
            "the sample standard deviation of these differences."
        ),
    )


def caches_table(found: ComparableGroups) -> Table | None:
    """Final figures of groups on each of several caches; None where they learned from one."""
    labels = cache_labels(
        name for group in found.groups for run in group.counted for name in run.metrics.by_name
    )
    if not labels:
        return None
    rows = [
        (
            Cell(text=label, is_name=True),
            Cell(text=group.name, is_name=True),
            *(
                Cell(text=spread_text(group.final(of_cache(label, key)), _COLUMNS[key][1]))
                for key in _OF_CACHE
            ),
        )
        for label in labels
        for group in found.groups
    ]
    return Table(
        title=f"Results by cache ({found.cache_id[:SHOWN_OF_HASH]})",
        headings=("cache", "recipe", *map(_heading, _OF_CACHE)),
        rows=tuple(rows),
        note="Each on its own validation rows; the figures above are over all of these positions.",
    )


def _heading(metric: str) -> str:
    return _COLUMNS[metric][0].replace("(T={T})", "")


def _best(groups: Sequence[SeedGroup], key: str) -> str:
    """The name of the group with the best mean of ``key``, of those that have finished."""
    sign = -1 if key in _HIGHER_IS_BETTER else 1
    means = [
        (sign * spread.mean, group.name)
        for group in groups
        if group.is_finished and (spread := group.final(key)) is not None
    ]
    return min(means)[1] if means and key not in _NEITHER else ""


def _runs_text(group: SeedGroup) -> str:
    counted = group.counted
    seeds = f"seed{'' if group.num_seeds == 1 else 's'} {group.seeds}"
    if group.has_repeats:
        seeds += ": repeats or copies"
    others = len(group.runs) - len(counted)
    if others:
        return f"{len(counted)} of {len(group.runs)} finished ({seeds})"
    text = f"{len(counted)} ({seeds})"
    return text if group.is_finished else f"{text}, not finished"


def _results_note(found: ComparableGroups) -> str:
    rows = "" if found.num_rows is None else f", {found.num_rows:,} rows"
    losses = {
        f"{loss:.4f}"
        for group in found.groups
        for run in group.runs
        if (loss := run.metrics.last("validation/teacher_loss")) is not None
    }
    teacher = f" The teacher's loss on these rows is {' or '.join(sorted(losses))}."
    repeats = ""
    if any(group.has_repeats for group in found.groups):
        repeats = " Runs of one seed are repeats or copies, over which there is no ±."
    has_norms = any(group.final(GRADIENT_NORM) for group in found.groups)
    norms = " Gradient norms are medians over steps, before clipping." if has_norms else ""
    return (
        f"Last validation on cache {found.cache_id}{rows}. ± is the sample standard deviation "
        f"over seeds.{repeats}{teacher if losses else ''}{norms}"
    )
