"""The recipe that lies in a cache. It may be a stranger's: what it names is read, and so is said.

In: an opened cache. Out: its recipe, whose seal was compared.
"""

from collections.abc import Sequence
from pathlib import Path
from shlex import quote

from cache_format.metadata import layout
from cache_format.metadata.recipe_file import read_recipe
from cache_format.reader import Cache
from pipeline.recipes.recipe import Override, Recipe, RecipeError, parse_recipe


def recipe_of(cache: Cache, next_step: str, overrides: Sequence[Override] = ()) -> Recipe:
    """The recipe in ``cache`` with ``overrides`` on top.

    Raises CacheError where there is none, or it is damaged, and RecipeError where this version
    cannot use it; the messages name the file and end with ``next_step``.
    """
    data = read_recipe(cache.storage, cache.cache_id, next_step)
    path = str(cache.storage.locate(layout.RECIPE))
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise RecipeError(f"{path}: not UTF-8 text: {error}. {next_step}") from error
    return parse_recipe(path, text, overrides)


def recipe_in(place: Path | str) -> str:
    """How ``--recipe`` names the recipe in a cache; one at a URL has to be fetched first."""
    return quote(str(place / "recipe.toml")) if isinstance(place, Path) else "RECIPE"
