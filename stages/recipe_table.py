"""A stage's settings as the table of a recipe."""

from dataclasses import asdict
from typing import Any, ClassVar, Protocol


class Dataclass(Protocol):
    """Any dataclass's instance."""

    __dataclass_fields__: ClassVar[dict[str, Any]]


def recipe_table(config: Dataclass) -> dict[str, Any]:
    """Every setting; one that is ``None`` is absent, which is what TOML has for it.

    Settings that are a dataclass themselves are a table within the table.
    """
    return _without_none(asdict(config))


def table_toml(name: str, config: Dataclass) -> str:
    """A recipe of the one table ``name``."""
    import tomli_w

    return tomli_w.dumps({name: recipe_table(config)})


def _without_none(settings: dict[str, Any]) -> dict[str, Any]:
    return {
        key: _without_none(value) if isinstance(value, dict) else value
        for key, value in settings.items()
        if value is not None
    }
