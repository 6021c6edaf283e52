"""``--recipe``, ``--set`` and ``--tokens``, and the recipe that they make.

Nothing heavy is imported before a recipe has been checked.
"""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import click

from pipeline.runtime.session import Session

if TYPE_CHECKING:
    from pipeline.recipes.recipe import Recipe

_Command = TypeVar("_Command", bound=Callable[..., Any])

tokens_option = click.option(
    "--tokens",
    metavar="N",
    help="Budget, such as 512M, rounded up to whole units; sets cache_teacher.num_tokens.",
)


def recipe_options(command: _Command) -> _Command:
    """``--recipe`` and ``--set``."""
    settings = click.option(
        "--set",
        "settings",
        multiple=True,
        metavar="TABLE.KEY=VALUE",
        help="Override one value of the recipe; may be repeated.",
    )
    recipe = click.option(
        "--recipe",
        "recipe_name",
        required=True,
        metavar="NAME|FILE",
        help="A shipped recipe (`pipeline recipes` lists them) or a TOML file.",
    )
    return recipe(settings(command))


def load_session_recipe(
    session: Session,
    name: str,
    settings: Sequence[str],
    *,
    ignored: str,
    tokens: str | None = None,
) -> "Recipe":
    """The recipe, kept in ``session`` for a failure's message; nothing is set in vain."""
    from pipeline.recipes.recipe import (
        RecipeError,
        load_recipe,
        parse_override,
        require_teacher_and_corpus,
        token_budget,
    )

    overrides = [parse_override(setting) for setting in settings]
    for override in overrides:
        if override.table.partition(".")[0] == ignored:
            raise RecipeError(f"{override.option}: this command does not read [{ignored}]")
    if tokens is not None:
        overrides.append(token_budget(tokens))
    session.recipe = load_recipe(name, overrides)
    if ignored != "cache_teacher":
        require_teacher_and_corpus(name, session.recipe)
    return session.recipe
