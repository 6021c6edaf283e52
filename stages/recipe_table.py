"""A stage's settings as the table of a recipe."""

from dataclasses import asdict
from typing import Any, ClassVar, Protocol


class Dataclass(Protocol):
    """Any dataclass's instance."""

    __dataclass_fields__: ClassVar[dict[str, Any]]


def recipe_table(config: Dataclass) -> dict[str, Any]:
    """Every setting; one that is ``None`` is absent, which is what TOML has for it."""
    return {key: value for key, value in asdict(config).items() if value is not None}


def table_toml(name: str, config: Dataclass) -> str:
    """A recipe of the one table ``name``."""
    import tomli_w

    return tomli_w.dumps({name: recipe_table(config)})
