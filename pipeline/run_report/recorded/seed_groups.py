"""Runs that differ in their seed alone are one group; figures are means over a group.

In: runs. Out: groups, each with its final figures as mean and sample standard deviation; and sets
of groups that were validated on the same rows, in which alone figures compare.
"""

import re
import statistics
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path

from pipeline.run_report.recorded.recorded_run import RecordedRun, count_of
from pipeline.run_report.recorded.settings import SEED, deciding_settings

_INITIAL_WEIGHTS = "initial_weights_sha256"
_MEDIAN = ("train/gradient_norm",)
_SEED_IN_NAME = re.compile(r"(^|[\W_]+)(seed|s)?[\W_]*$", re.IGNORECASE)


@dataclass(frozen=True, kw_only=True)
class Spread:
    """A figure over the runs of a group."""

    mean: float
    deviation: float | None
    """Sample standard deviation over seeds; None of a single run, and where runs share a seed:
    repeats and copies say nothing of other seeds."""
    num_runs: int


@dataclass(frozen=True, kw_only=True)
class SeedGroup:
    """Runs of one recipe."""

    name: str
    runs: tuple[RecordedRun, ...]

    @property
    def counted(self) -> tuple[RecordedRun, ...]:
        """The runs that its figures are of: the finished ones, or all where none has finished."""
        finished = tuple(run for run in self.runs if run.state == "finished")
        return finished or self.runs

    @property
    def is_finished(self) -> bool:
        """Whether its figures are final."""
        return self.counted[0].state == "finished"

    @property
    def seeds(self) -> str:
        """Those of its runs, as text; "0 ×3" of three runs."""
        counts = Counter(map(_seed, self.runs))
        return ", ".join(
            seed if count == 1 else f"{seed} ×{count}" for seed, count in counts.items()
        )

    @property
    def num_seeds(self) -> int:
        """How many seeds its runs have."""
        return len(set(map(_seed, self.runs)))

    @property
    def has_repeats(self) -> bool:
        """Whether several of its runs have the same seed."""
        return self.num_seeds < len(self.runs)

    def spread(self, figure: Callable[[RecordedRun], float | None]) -> Spread | None:
        """``figure`` over the counted runs; None where none has it."""
        found = [(run, value) for run in self.counted if (value := figure(run)) is not None]
        if not found:
            return None
        values = [value for _, value in found]
        are_seeds = 1 < len(found) == len({_seed(run) for run, _ in found})
        return Spread(
            mean=statistics.fmean(values),
            deviation=statistics.stdev(values) if are_seeds else None,
            num_runs=len(found),
        )

    def final(self, metric: str) -> Spread | None:
        """The newest value of ``metric``; of a norm, whose steps differ by chance, the median."""
        return self.spread(lambda run: final_figure(run, metric))


def final_figure(run: RecordedRun, metric: str) -> float | None:
    """What ``run`` came to: see ``SeedGroup.final``."""
    newest = run.metrics.last(metric)
    if newest is None or metric not in _MEDIAN:
        return newest
    return statistics.median(run.metrics.of(metric).values())


@dataclass(frozen=True, kw_only=True)
class ComparableGroups:
    """Groups validated on the same rows of the same cache, ranked."""

    cache_id: str
    num_rows: int | None
    """Validation rows; None where that is not recorded."""
    groups: tuple[SeedGroup, ...]


def group_runs(runs: Sequence[RecordedRun]) -> list[SeedGroup]:
    """Groups in the order of their first runs."""
    num_rows = _rows_of_each(runs)
    found: dict[str, list[RecordedRun]] = {}
    for run in runs:
        found.setdefault(_recipe_key(run, num_rows[run.path]), []).append(run)
    parts = [part for group in found.values() for part in _by_initial_weights(group)]
    names = _unique([group_name([run.name for run in part]) for part in parts])
    return [SeedGroup(name=name, runs=tuple(part)) for name, part in zip(names, parts, strict=True)]


def rank(groups: Sequence[SeedGroup], metric: str, *, is_lower_better: bool) -> list[SeedGroup]:
    """Best first by ``metric``; then those that have not finished, then those without it."""

    def key(group: SeedGroup) -> tuple[bool, bool, float]:
        found = group.final(metric)
        value = 0.0 if found is None else found.mean
        return found is None, not group.is_finished, value if is_lower_better else -value

    return sorted(groups, key=key)


def comparable(
    groups: Sequence[SeedGroup], metric: str, *, is_lower_better: bool
) -> list[ComparableGroups]:
    """``groups`` by cache and validation rows, each set ranked by ``metric``."""
    num_rows_of = _rows_of_each([run for group in groups for run in group.runs])
    sets: dict[tuple[str, int | None, str], list[SeedGroup]] = {}
    for group in groups:
        run = group.runs[0]
        cache_id, num_there = _validation_split(run)
        key = (cache_id, num_rows_of[run.path], num_there)
        sets.setdefault(key, []).append(group)
    return [
        ComparableGroups(
            cache_id=cache_id,
            num_rows=num_rows,
            groups=tuple(rank(found, metric, is_lower_better=is_lower_better)),
        )
        for (cache_id, num_rows, _), found in sets.items()
    ]


def validation_rows(run: RecordedRun) -> int | None:
    """How many rows each of its validations reads, of all its caches; None where that is not
    recorded."""
    if not run.has_recipe:
        return None
    caches = run.identity.get("caches")
    several = caches.values() if isinstance(caches, dict) else [run.identity]
    most, there = count_of(run.recipe.get("validation_rows", 256)), 0
    for own in several:
        found = count_of(own.get("num_validation_rows")) if isinstance(own, Mapping) else None
        if found is None or most is None:
            return None
        there += min(found, most)
    return there


def initial_weights(group: SeedGroup) -> tuple[str, ...]:
    """Hashes of the weights that its runs begin from, each once; empty for random ones."""
    identities = [run.identity for run in group.runs]
    found = [str(each[_INITIAL_WEIGHTS]) for each in identities if _INITIAL_WEIGHTS in each]
    return tuple(dict.fromkeys(found))


def group_name(names: Sequence[str]) -> str:
    """What the names of a group's runs have in common, without the word "seed"."""
    if len(names) == 1:
        return names[0]
    same = takewhile(lambda letters: len(set(letters)) == 1, zip(*names, strict=False))
    common = "".join(letters[0] for letters in same)
    if any(name[len(common) :][:1].isdecimal() for name in names):
        common = common.rstrip("0123456789")  # of seeds 10 and 11, not "1"
    return _SEED_IN_NAME.sub("", common) or f"{names[0]} and {len(names) - 1} more"


def _unique(names: Sequence[str]) -> list[str]:
    found: list[str] = []
    for name in names:
        number, unique = 1, name
        while unique in found:
            number += 1
            unique = f"{name} ({number})"
        found.append(unique)
    return found


def _validation_split(run: RecordedRun) -> tuple[str, str]:
    """The cache, and how many validation rows it had."""
    return run.cache_id, str(run.identity.get("num_validation_rows"))


def _rows_of_each(runs: Sequence[RecordedRun]) -> dict[Path, int | None]:
    """Validation rows by the paths of ``runs``.

    A run whose recipe is lost has those of the other runs of its cache, if these agree.
    """
    by_split: dict[tuple[str, str], set[int | None]] = {}
    for run in runs:
        if run.has_recipe:
            by_split.setdefault(_validation_split(run), set()).add(validation_rows(run))
    found: dict[Path, int | None] = {}
    for run in runs:
        others = by_split.get(_validation_split(run), set())
        is_told = not run.has_recipe and len(others) == 1
        found[run.path] = next(iter(others)) if is_told else validation_rows(run)
    return found


def _seed(run: RecordedRun) -> str:
    return str(run.identity.get(SEED, "?"))


def _recipe_key(run: RecordedRun, num_rows: int | None) -> str:
    """Equal for runs of the same recipe and data, whatever their seed."""
    if run.record is None:
        return f"unreadable {run.path}"
    settings = deciding_settings(run)
    settings.pop(SEED, None)
    data = [str(run.identity.get(key)) for key in ("cache_id", "shards_sha256")]
    is_initialized = _INITIAL_WEIGHTS in run.identity
    return repr((sorted(settings.items()), data, num_rows, is_initialized))


def _by_initial_weights(runs: list[RecordedRun]) -> list[list[RecordedRun]]:
    """Runs that begin from another run's weights: one group if each seed has weights of its own."""
    seeds = [repr(run.identity.get(SEED)) for run in runs]
    weights = [str(run.identity.get(_INITIAL_WEIGHTS)) for run in runs]
    if len(set(weights)) == 1 or len(set(weights)) == len(set(seeds)) == len(runs):
        return [runs]
    found: dict[str, list[RecordedRun]] = {}
    for run, weight in zip(runs, weights, strict=True):
        found.setdefault(weight, []).append(run)
    return list(found.values())
