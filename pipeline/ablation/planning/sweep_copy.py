"""The copy of a sweep in its directory: ``sweep.toml`` and ``base.toml``, with every value.

``pipeline ablate DIR/sweep.toml --out DIR`` goes on with it, whatever became of the files that it
was made from. Beside each run are its recipe, ``RUN.toml``, and what it printed, ``RUN.log``.
"""

from pathlib import Path
from typing import Any

import tomli_w

from cache_format.storage.atomic import make_directory, publish_bytes
from pipeline.ablation.planning.planned_runs import Plan, PlannedRun

SWEEP_FILE = "sweep.toml"
_BASE_FILE = "base.toml"


def write_copy(plan: Plan, out: Path) -> None:
    """Make ``out`` hold the copy of ``plan``'s sweep, in place of an earlier one."""
    sweep = plan.sweep
    document: dict[str, Any] = {
        "description": sweep.description,
        "recipe": _BASE_FILE,
        "seeds": list(sweep.seeds),
        "variant": {name: dict(settings) for name, settings in sweep.variants.items()},
    }
    if sweep.grid:
        document["grid"] = {key: list(values) for key, values in sweep.grid.items()}
    make_directory(out)
    # First, because it is what makes the directory that of a sweep.
    publish_bytes(out / SWEEP_FILE, tomli_w.dumps(document).encode())
    publish_bytes(out / _BASE_FILE, plan.base.to_toml().encode())


def recipe_file(out: Path, run: PlannedRun) -> Path:
    """Where the recipe of ``run`` lies."""
    return _beside(out, run.name, ".toml")


def log_of(out: Path, name: str) -> Path:
    """Where what the run ``name`` prints goes."""
    return _beside(out, name, ".log")


def write_recipe(out: Path, run: PlannedRun) -> None:
    """Write the recipe of ``run``."""
    path = recipe_file(out, run)
    make_directory(path.parent)
    publish_bytes(path, run.recipe.to_toml().encode())


def _beside(out: Path, name: str, suffix: str) -> Path:
    place = out / name
    return place.with_name(place.name + suffix)
