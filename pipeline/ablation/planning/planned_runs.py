"""The runs of a sweep: every variant at every point of the grid with every seed, and its recipe.

In: a sweep. Out: points (a recipe but for its seed) and their runs. Every problem of every recipe
is found before anything else is done, by the same checks as those of ``train-student``.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product

import tomli_w

from pipeline.ablation.planning.run_names import point_name, run_name
from pipeline.ablation.planning.sweep import Settings, Sweep, SweepError
from pipeline.recipes.recipe import Override, Recipe, RecipeError, parse_recipe, recipe_text
from stages.train_student.config import TrainStudentConfig
from stages.train_student.trainer.run_directory import deciding_settings

_MOST_RUNS = 1_000  # as many as a report shows
_SHOWN_NAMES = 3


@dataclass(frozen=True, kw_only=True)
class PlannedRun:
    """One training: a directory below that of the sweep."""

    name: str
    """Its path below the sweep's directory."""
    point: str
    seed: int
    recipe: Recipe

    @property
    def config(self) -> TrainStudentConfig:
        """Its settings of stage two."""
        return self.recipe.train_student


@dataclass(frozen=True, kw_only=True)
class Point:
    """A variant at a point of the grid."""

    name: str
    settings: Settings
    """What it has in place of the base's values."""
    runs: tuple[PlannedRun, ...]
    """One for each seed."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A whole sweep."""

    sweep: Sweep
    base: Recipe
    """What all runs have but for their own settings."""
    points: tuple[Point, ...]

    @property
    def runs(self) -> tuple[PlannedRun, ...]:
        """All of them: a seed of every point, then the next seed, so that early ones compare."""
        by_seed = zip(*(point.runs for point in self.points), strict=True)
        return tuple(run for runs in by_seed for run in runs)


def plan_runs(sweep: Sweep, problems: "Problems") -> Plan:
    """The runs of ``sweep`` whose recipes can be; what is wrong with the others is in ``problems``.

    Raises RecipeError where there is no base, and SweepError where it is wrong by itself.
    """
    text = recipe_text(sweep.recipe)
    common = _overrides("[set]", sweep.settings)
    base, found = _checked(sweep, text, common)
    problems.add("", found)
    base_problems = set(found)
    points = []
    for variant, settings, grid in _combinations(sweep):
        try:
            name = point_name(variant, grid)
        except ValueError as error:
            problems.add("", [str(error)])
            continue
        overrides = [
            *common,
            *_overrides(f"[variant.{variant}]", settings),
            *_overrides("[grid]", grid),
        ]
        recipe, found = _checked(sweep, text, overrides)
        problems.add(name, [each for each in found if each not in base_problems])
        if recipe is not None:
            points.append(_point(name, {**settings, **grid}, recipe, sweep.seeds))
    for problem in _repeated(points):
        problems.add("", [problem])
    if base is None:
        problems.raise_any(sweep.source)
    assert base is not None, "without one there is a problem"
    return Plan(sweep=sweep, base=base, points=tuple(points))


class Problems:
    """What is wrong, each with the names of the points that it is about."""

    def __init__(self) -> None:
        self._names: dict[str, list[str]] = {}

    def add(self, name: str, problems: Iterable[str]) -> None:
        """``problems`` of the point or run ``name``; "" for those of the whole sweep."""
        for problem in problems:
            self._names.setdefault(problem, []).append(name)

    def text(self, source: str) -> str:
        """A line for each problem, however many runs have it; empty where there is none."""
        if not self._names:
            return ""
        lines = [f"{_of(names)}{problem}" for problem, names in self._names.items()]
        what = "1 problem" if len(lines) == 1 else f"{len(lines)} problems"
        return "\n  ".join([f"{source}: {what}; nothing was started:", *lines])

    def raise_any(self, source: str) -> None:
        """Raise SweepError with all, if there are any."""
        if text := self.text(source):
            raise SweepError(text)


def _of(names: Sequence[str]) -> str:
    shown = [name for name in dict.fromkeys(names) if name]
    if not shown:
        return ""
    more = len(shown) - _SHOWN_NAMES
    return ", ".join(shown[:_SHOWN_NAMES]) + (f" and {more} more: " if more > 0 else ": ")


def _combinations(sweep: Sweep) -> Iterator[tuple[str, Settings, dict[str, object]]]:
    """Variant by variant, and in it point by point: the last key of the grid changes first."""
    num_points = len(sweep.variants)
    for values in sweep.grid.values():
        num_points *= len(values)
    if num_points * len(sweep.seeds) > _MOST_RUNS:
        raise SweepError(
            f"{sweep.source}: {num_points * len(sweep.seeds):,} runs; expected {_MOST_RUNS:,} at "
            "most. Take fewer values or seeds, or several sweeps."
        )
    for variant, settings in sweep.variants.items():
        for values in product(*sweep.grid.values()):
            yield variant, settings, dict(zip(sweep.grid, values, strict=True))


def _overrides(where: str, settings: Mapping[str, object]) -> list[Override]:
    """``settings`` as ``--set`` would have them: values in TOML."""
    found = []
    for path, value in settings.items():
        table, _, key = path.rpartition(".")
        text = tomli_w.dumps({"value": value}).partition("=")[2].strip()
        found.append(Override(f"{where} {path}", table, key, text))
    return found


def _checked(
    sweep: Sweep, text: str, overrides: Sequence[Override]
) -> tuple[Recipe | None, list[str]]:
    """The recipe; where it is wrong, every override that is, each by itself.

    A recipe's check ends at the first problem: so what is blamed is left out, and asked again.
    """
    left = list(overrides)
    problems: list[str] = []
    while True:
        try:
            recipe = parse_recipe(sweep.recipe, text, left)
        except RecipeError as error:
            problems.append(str(error))
            blamed = [each for each in left if str(error).startswith(f"{each.option}:")]
            if not blamed or blamed[0].key == "kind":  # which decides what the other keys mean
                return None, problems
            left.remove(blamed[0])
        else:
            return (None if problems else recipe), problems


def _point(name: str, settings: Settings, recipe: Recipe, seeds: Sequence[int]) -> Point:
    runs = tuple(
        PlannedRun(
            name=run_name(name, seed),
            point=name,
            seed=seed,
            recipe=replace(recipe, train_student=replace(recipe.train_student, seed=seed)),
        )
        for seed in seeds
    )
    return Point(name=name, settings=settings, runs=runs)


def _repeated(points: Sequence[Point]) -> Iterator[str]:
    """What would be trained twice: by its settings, or into one directory."""
    by_settings: dict[str, str] = {}
    by_name: dict[str, str] = {}
    for point in points:
        settings = repr(sorted(deciding_settings(point.runs[0].config).items()))
        other = by_settings.setdefault(settings, point.name)
        if other != point.name:
            yield (
                f"{point.name} and {other} have the same settings, but for those that change no "
                "result: remove one"
            )
        folded = point.name.casefold()
        if (other := by_name.setdefault(folded, point.name)) != point.name:
            yield f"{point.name} and {other} would share a directory on some file systems"
        elif sum(each.name == point.name for each in points) > 1:
            yield f"{point.name} is the name of several points of the grid: remove values"
