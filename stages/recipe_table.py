"""A stage's settings as the table of a recipe."""

from dataclasses import asdict
from typing import Any, ClassVar, Protocol


class Dataclass(Protocol):
    """Any dataclass's instance."""

    __dataclass_fields__: ClassVar[dict[str, Any]]


def recipe_table(config: Dataclass) -> dict[str, Any]:
    """Every setting; one that is ``None`` is absent, which is what TOML has for it.

    Settings that are a dataclass themselves are a table within the table, and lists of them are
    lists of tables.
    """
    return _without_none(asdict(config))


def table_toml(name: str, config: Dataclass) -> str:
    """A recipe of the one table ``name``."""
    import tomli_w

    return tomli_w.dumps({name: recipe_table(config)})


def _without_none(settings: dict[str, Any]) -> dict[str, Any]:
    return {key: _plain(value) for key, value in settings.items() if value is not None}


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return _without_none(value)
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value
