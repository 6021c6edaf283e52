"""From a TOML value to a config field: what a type hint accepts, and how a refusal is worded.

In: a value as ``tomllib`` or ``--set`` gives it, and a field's type hint. Out: the field's value,
or a ``ValueError`` of the form "expected …, found …".
"""

import math
import re
import tomllib
from dataclasses import MISSING, fields, is_dataclass
from decimal import Decimal
from difflib import get_close_matches
from types import NoneType, UnionType
from typing import Any, Literal, get_args, get_origin, get_type_hints

_MULTIPLIERS = {"K": 1_000, "M": 1_000_000, "B": 1_000_000_000}
_SUFFIXED = re.compile(r"(\d+(?:\.\d+)?)([KMB]|e\d{1,2})", re.IGNORECASE)
_NAMES = {str: "a string", bool: "true or false", float: "a number"}
_KINDS = {str: "string", bool: "boolean", int: "integer", float: "float", list: "array"}


def convert(value: object, hint: Any) -> object:
    """``value`` as ``hint`` wants it: lists become tuples, ints floats, "512M" an integer."""
    if is_optional(hint):
        return None if value == "none" else convert(value, _without_none(hint))
    if is_dataclass(hint) and isinstance(value, dict):
        return _of_table(value, hint)
    if get_origin(hint) is tuple and isinstance(value, list):
        return tuple(convert(item, get_args(hint)[0]) for item in value)
    if get_origin(hint) is Literal and value in get_args(hint):
        return value
    if hint in (str, bool, int) and type(value) is hint:
        return value
    if hint is int and isinstance(value, str) and (number := _suffixed(value)) is not None:
        return number
    if hint is float and type(value) in (int, float) and (finite := _finite(value)) is not None:
        return finite
    raise ValueError(f"expected {_expected(hint)}, found {_found(value)}")


def from_command_line(text: str, hint: Any) -> object:
    """The TOML value that ``text`` stands for; ``text`` itself where that is no TOML or a string
    is wanted (a revision such as ``1234567`` needs no quotes)."""
    hint = _without_none(hint)
    if hint is int and _suffixed(text) is not None:  # 1e6 is a float to TOML
        return text
    try:
        document = tomllib.loads(f"value = {text}")
    except (ValueError, RecursionError):
        return text
    wants_text = hint is str or get_origin(hint) is Literal
    if document.keys() != {"value"} or (wants_text and not isinstance(document["value"], str)):
        return text
    return document["value"]


def shown(value: object) -> str:
    """``value`` in a message; Python writes no integers of thousands of digits."""
    try:
        return str(value)
    except ValueError:
        return "a number of thousands of digits"


def is_optional(hint: Any) -> bool:
    """Whether a field may be absent or ``"none"``."""
    return get_origin(hint) is UnionType and NoneType in get_args(hint)


def _of_table(table: dict[str, Any], hint: Any) -> object:
    """A dataclass from a table of an array of tables."""
    called = f"{table['name']}: " if isinstance(table.get("name"), str) else ""
    hints = get_type_hints(hint)
    values: dict[str, Any] = {}
    for key, value in table.items():
        if key not in hints:
            (nearest,) = get_close_matches(key, hints, n=1, cutoff=0.0)
            raise ValueError(f'{called}unknown key "{key}"; the nearest is "{nearest}"')
        try:
            values[key] = convert(value, hints[key])
        except ValueError as error:
            raise ValueError(f"{called}{key}: {error}") from error
    for field in fields(hint):
        if field.name not in values and field.default is MISSING:
            raise ValueError(f"{called}{field.name} is missing")
    return hint(**values)


def _without_none(hint: Any) -> Any:
    if not is_optional(hint):
        return hint
    (inner,) = (part for part in get_args(hint) if part is not NoneType)
    return inner


def _suffixed(text: str) -> int | None:
    match = _SUFFIXED.fullmatch(text.strip())
    if match is None:
        return None
    unit = match[2].upper()
    number = Decimal(match[1]) * (_MULTIPLIERS.get(unit) or Decimal(f"1{unit}"))
    return int(number) if number == int(number) else None


def _finite(value: Any) -> float | None:
    try:
        number = float(value)
    except OverflowError:
        return None
    return number if math.isfinite(number) else None


def _expected(hint: Any) -> str:
    if get_origin(hint) is tuple:
        return f"a list, each item {_expected(get_args(hint)[0])}"
    if get_origin(hint) is Literal:
        return "one of " + ", ".join(f'"{choice}"' for choice in get_args(hint))
    if is_dataclass(hint):
        return "a table"
    if hint is int:
        return 'a whole number, such as 512 or "512M"'
    return _NAMES[hint]


def _found(value: object) -> str:
    if isinstance(value, str):
        return f'the string "{value}"'
    if isinstance(value, bool):
        return "true" if value else "false"
    kind = _KINDS.get(type(value))
    return f"the {kind} {shown(value)}" if kind else f"a {type(value).__name__}"
