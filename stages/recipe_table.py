"""A stage's settings as the table of a recipe."""

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from _typeshed import DataclassInstance


def recipe_table(config: "DataclassInstance") -> dict[str, Any]:
    """Every setting; one that is ``None`` is absent, which is what TOML has for it."""
    return {key: value for key, value in asdict(config).items() if value is not None}


def table_toml(name: str, config: "DataclassInstance") -> str:
    """A recipe of the one table ``name``."""
    import tomli_w

    return tomli_w.dumps({name: recipe_table(config)})
