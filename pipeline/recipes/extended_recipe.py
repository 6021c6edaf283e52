"""The recipe for extending a finished cache: its own, with a larger budget.

In: the cache. Out: its ``recipe.toml`` with the budget, and with the commits that the cache was
made from in place of branches that may have moved on.
"""

from dataclasses import replace
from pathlib import Path
from shlex import quote

import cache_format
from cache_format.reader import Cache
from pipeline.recipes.cached_recipe import recipe_in, recipe_of
from pipeline.recipes.recipe import Override, Recipe, token_budget


def extended_recipe(place: Path | str, tokens: str) -> Recipe:
    """The recipe in the cache at ``place``, with the budget ``tokens``.

    Raises ValueError if that is no larger than what the cache holds, the corpus has ended, or
    teacher or corpus are no longer where they were; MissingFileError if there is no recipe.
    """
    cache = cache_format.open(place, allow_incomplete=True)
    step = (
        "Extend it with the recipe that it was made with: `pipeline cache-teacher --recipe RECIPE "
        f"--out {quote(str(place))} --tokens {quote(tokens)}`."
    )
    recipe = _pinned(recipe_of(cache, step, [token_budget(tokens), *_pins(cache)]), cache)
    _require_more(cache, place, recipe.cache_teacher.num_tokens)
    _require_there(cache, place, recipe, tokens)
    return recipe


def places_text(place: Path | str, recipe: Recipe) -> str:
    """From where a teacher and a text will be read, which whoever made the cache has chosen."""
    config = recipe.cache_teacher
    corpora = ", ".join(repr(settings.corpus) for settings in config.each_corpus.values())
    what = "corpus" if config.corpora is None else "corpora"
    return (
        f"According to the recipe in {place}, the teacher is read from {config.teacher!r} and the "
        f"{what} from {corpora}. They are refused if they are not those of the cache."
    )


def _pins(cache: Cache) -> list[Override]:
    """The commits of what came from the Hub."""
    commits = {"teacher_revision": cache.spec.teacher.revision}
    if cache.spec.corpora is None:
        commits["corpus_revision"] = cache.spec.sole_corpus.revision
    where = "the cache's spec"
    return [Override(where, "cache_teacher", key, text) for key, text in commits.items() if text]


def _pinned(recipe: Recipe, cache: Cache) -> Recipe:
    """``recipe`` with the commits of several corpora; one that has others is refused later."""
    config = recipe.cache_teacher
    if cache.spec.corpora is None or config.corpora is None:
        return recipe
    commits = {share.name: share.corpus.revision for share in cache.spec.corpora}
    pinned = tuple(
        replace(entry, corpus_revision=commits.get(entry.name) or entry.corpus_revision)
        for entry in config.corpora
    )
    return replace(recipe, cache_teacher=replace(config, corpora=pinned))


def _require_more(cache: Cache, place: Path | str, num_tokens: int) -> None:
    manifest = cache.manifest
    held = manifest.num_tokens
    if num_tokens <= held:
        raise ValueError(
            f"{place}: already holds {held:,} tokens: expected a larger budget, found "
            f"{num_tokens:,}."
        )
    if manifest.is_whole_corpus:
        raise ValueError(
            f"{place}: already holds the whole corpus, {held:,} tokens. "
            "For more, make another cache from a larger corpus."
        )


def _require_there(cache: Cache, place: Path | str, recipe: Recipe, tokens: str) -> None:
    """Raise if a local teacher or corpus is gone; what came from the Hub is looked for there."""
    config, spec = recipe.cache_teacher, cache.spec
    places = [("teacher", config.teacher, spec.teacher.revision, "teacher=PATH")]
    if len(config.each_corpus) == len(spec.each_corpus):  # else, the stage says what differs
        change = "corpus=PATH" if config.corpora is None else "corpora='[…]'"
        places += [
            ("corpus", settings.corpus, corpus.revision, change)
            for settings, corpus in zip(config.each_corpus.values(), spec.each_corpus, strict=True)
        ]
    for name, path, revision, change in places:
        if not revision and not Path(path).expanduser().exists():
            raise ValueError(
                f"{name} {path!r}, which {place} was made from, is no longer there (looked for in "
                f"{Path.cwd()}). Put it back, change to the directory in which the cache was made, "
                "or give its new location:\n"
                f"  pipeline cache-teacher --recipe {recipe_in(place)} "
                f"--out {quote(str(place))} --tokens {quote(tokens)} "
                f"--set cache_teacher.{change}"
            )
