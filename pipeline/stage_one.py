"""Run stage one with a bar, and say what came of it. Called by ``cache-teacher`` and ``extend``."""

from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING

from pipeline.quiet import quieten
from stages.cache_teacher.config import UnitRange

if TYPE_CHECKING:
    from cache_format.manifest import Manifest
    from pipeline.recipe import Recipe


def run_stage_one(recipe: "Recipe", out: Path | str, units: UnitRange) -> "Manifest":
    """The manifest of the cache at ``out``, now filled as ``recipe`` says."""
    quieten()
    from pipeline.progress import Bar, CacheReport
    from stages.cache_teacher.run import cache_teacher

    with Bar("cache") as bar:
        return cache_teacher(
            recipe.cache_teacher,
            out,
            recipe_toml=recipe.to_toml(),
            report=CacheReport(bar),
            units=units,
        )


def recipe_in(place: Path | str) -> str:
    """How ``--recipe`` names the recipe in a cache; one at a URL has to be fetched first."""
    return quote(str(place / "recipe.toml")) if isinstance(place, Path) else "RECIPE"


def cached_text(manifest: "Manifest", out: Path | str, recipe_name: str) -> str:
    """What the cache holds, and the next command, in which the recipe is ``recipe_name``."""
    from pipeline.progress import short

    num_tokens = sum(shard.num_tokens for shard in manifest.shards)
    held = f"{out} holds {short(num_tokens)} tokens in {len(manifest.shards)} shards."
    if not manifest.complete:
        return (
            f"{held} It is a part: units before them, or after, are missing. When the other parts "
            f"are made:\n  pipeline merge {quote(str(out))} OTHER... --out CACHE"
        )
    if all(shard.split == "validation" for shard in manifest.shards):
        return (
            f"{held} All of them are validation: for something to train on, cache more --tokens, "
            "or fewer cache_teacher.documents_per_unit in another --out."
        )
    return (
        f"{held} Next:\n  pipeline train-student --recipe {recipe_name} "
        f"--cache {quote(str(out))} --out RUN"
    )
