"""Raise the error for an invalid value of a spec field."""

import re

SHA256 = re.compile(r"[0-9a-f]{64}")


def one_of(allowed: tuple[str, ...]) -> str:
    """``'a', 'b' or 'c'``."""
    return f"{', '.join(map(repr, allowed[:-1]))} or {allowed[-1]!r}"


def require(holds: bool, name: str, found: object, allowed: str) -> None:
    """Raise ValueError that names the field, what it may be and what it is, unless it ``holds``."""
    if not holds:
        raise ValueError(f"{name}: must be {allowed}, found {found!r}")
