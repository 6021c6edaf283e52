"""A sweep file: a base recipe, variants, a grid and seeds.

In: a TOML file. Out: a ``Sweep``, whose recipes are not checked yet (see ``planned_runs``).
"""

import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cache_format.storage.atomic import open_regular
from pipeline.recipes.recipe import RecipeError, recipe_names

BASE = "base"
"""The variant of a sweep that names none: the recipe as it is."""
SEED_KEY = "train_student.seed"
_KEYS = ("description", "recipe", "seeds", "set", "variant", "grid")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,79}")
_OURS = (".toml", ".log")
_MOST_BYTES = 1 << 20
_MOST_SEED = 2**63 - 1

Settings = Mapping[str, object]
"""TOML values by the dotted key of a recipe, such as "train_student.alpha_start"."""


class SweepError(RecipeError):
    """A sweep that cannot be run as it is written: every problem on a line of its own."""

    @property
    def advice(self) -> str:
        """Where its keys are described."""
        return f"docs/ablations.md describes the keys of a sweep; {super().advice}"


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """What the file says."""

    source: str
    """What errors call it."""
    recipe: str
    """The base: name of a shipped recipe, or a path."""
    seeds: tuple[int, ...]
    settings: Settings
    """What all variants have in place of the recipe's values."""
    variants: Mapping[str, Settings]
    """At least one; in the order of the file."""
    grid: Mapping[str, tuple[object, ...]]
    """Values of each key, of which every combination is made."""
    description: str = ""


def load_sweep(path: Path) -> Sweep:
    """The sweep in the file ``path``. Raises SweepError naming all that is wrong with its form."""
    document = _read(path)
    problems = [
        f"unknown key {key!r}; a sweep has {', '.join(_KEYS)}"
        for key in document
        if key not in _KEYS
    ]
    for key in ("description", "recipe"):
        if not isinstance(document.get(key, ""), str):
            problems.append(f"{key}: expected a string, found {document[key]!r}")
    if not document.get("recipe"):
        problems.append('recipe: missing; expected the base, such as recipe = "distil-xlstm"')
    sweep = Sweep(
        source=str(path),
        recipe=_place(str(document.get("recipe", "")), path.parent),
        seeds=_seeds(document.get("seeds"), problems),
        settings=_settings(document.get("set", {}), "[set]", problems),
        variants=_variants(document.get("variant", {}), problems),
        grid=_grid(document.get("grid", {}), problems),
        description=str(document.get("description", "")),
    )
    if problems:
        raise SweepError(_listed(str(path), problems))
    return sweep


def _listed(source: str, problems: list[str]) -> str:
    return "\n  ".join([f"{source}: not a sweep that can be run; nothing was started:", *problems])


def _read(path: Path) -> dict[str, Any]:
    try:
        with open_regular(path) as file:
            data = file.read(_MOST_BYTES + 1)
        if len(data) > _MOST_BYTES:
            raise SweepError(f"{path}: larger than {_MOST_BYTES:,} bytes, so not a sweep")
        return tomllib.loads(data.decode("utf-8"))
    except (UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise SweepError(f"{path}: not valid TOML: {error}") from error
    except RecursionError as error:
        raise SweepError(f"{path}: not a sweep: its values are nested too deep") from error


def _place(recipe: str, beside: Path) -> str:
    """A file is looked for beside the sweep, wherever the command is typed."""
    if recipe in recipe_names() or not recipe:
        return recipe
    return str(beside / recipe)


def _seeds(value: object, problems: list[str]) -> tuple[int, ...]:
    if not (isinstance(value, list) and value and all(map(_is_seed, value))):
        found = "nothing" if value is None else repr(value)
        problems.append(f"seeds: expected whole numbers, such as seeds = [0, 1, 2], found {found}")
        return ()
    seeds: tuple[int, ...] = tuple(value)
    for seed in dict.fromkeys(seed for seed in seeds if seeds.count(seed) > 1):
        problems.append(f"seeds: {seed} is there twice")
    return seeds


def _is_seed(value: object) -> bool:
    return type(value) is int and 0 <= value <= _MOST_SEED


def _settings(table: object, where: str, problems: list[str]) -> Settings:
    if not isinstance(table, dict):
        problems.append(f"{where}: expected a table of recipe keys, found {table!r}")
        return {}
    settings: dict[str, object] = {}
    for key, value in _flat(table):
        if key in settings:
            problems.append(f"{where} {key}: is there twice")
        settings[key] = value
        if problem := _key_problem(key):
            problems.append(f"{where} {key}: {problem}")
    return settings


def _flat(table: Mapping[str, Any], prefix: str = "") -> list[tuple[str, object]]:
    """Values by dotted keys, which may be tables within tables, or written with dots in quotes."""
    found: list[tuple[str, object]] = []
    for key, value in table.items():
        path = prefix + key
        found += _flat(value, f"{path}.") if isinstance(value, dict) else [(path, value)]
    return found


def _key_problem(key: str) -> str:
    """What is wrong with a key whatever the recipe; unknown ones are found with the recipe."""
    if key == SEED_KEY:
        return "a sweep's seeds are set by seeds = [0, 1, 2]"
    if key.partition(".")[0] == "cache_teacher":
        return "a sweep trains students and does not read [cache_teacher]"
    if "." not in key:
        return f"expected TABLE.KEY, such as train_student.{key}"
    if key.partition(".")[0] != "train_student":
        return (
            "expected a key of train_student. To TOML, a name with dots is several, unless it is "
            'in quotes: [variant."beta-0.1"]'
        )
    return ""


def _variants(table: object, problems: list[str]) -> dict[str, Settings]:
    if not isinstance(table, dict):
        problems.append(f"variant: expected tables such as [variant.fixed-alpha], found {table!r}")
        return {}
    if not table:
        return {BASE: {}}
    spelled: dict[str, str] = {}
    for name in table:
        if not _NAME.fullmatch(name) or name.endswith(_OURS):
            problems.append(
                f"[variant.{name!r}]: its runs lie in a directory of this name: expected letters, "
                f"digits and . _ + -, a letter or digit first, at most 80, and no {_OURS[0]} or "
                f"{_OURS[1]} at the end"
            )
        other = spelled.setdefault(name.casefold(), name)
        if other != name:
            problems.append(
                f"[variant.{name}]: some file systems do not tell it from [variant.{other}]; "
                "choose names that differ in more than case"
            )
    return {
        name: _settings(settings, f"[variant.{name}]", problems) for name, settings in table.items()
    }


def _grid(table: object, problems: list[str]) -> dict[str, tuple[object, ...]]:
    found: dict[str, tuple[object, ...]] = {}
    for key, values in _settings(table, "[grid]", problems).items():
        if not isinstance(values, list) or not values:
            problems.append(
                f"[grid] {key}: expected a list of values, such as [2, 4], found {values!r}"
            )
        else:
            found[key] = tuple(values)
    return found
