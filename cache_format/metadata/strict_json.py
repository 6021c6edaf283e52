"""Parse JSON from untrusted sources; ambiguous or invalid JSON is refused with the reason.

What Python's ``json`` lets through is refused here: keys that are there twice, NaN and infinity,
numbers that no float holds, text that is no Unicode; and what ends in its other errors (bytes that
are no UTF-8, nesting that is too deep) is a ValueError, too.
"""

import json
import math
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NoReturn

from cache_format.errors import AdvisedError

_MAX_BYTES = 1 << 26
_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")


def parse_object(data: bytes) -> dict[str, Any]:
    """The object that ``data`` is, in UTF-8. Raises ValueError with the reason."""
    try:
        text = data.decode("utf-8")
        value = json.loads(
            text, object_pairs_hook=_unique, parse_constant=_refuse, parse_float=_finite
        )
        if _SURROGATE.search(text):
            json.dumps(value, ensure_ascii=False).encode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"not UTF-8 text, from byte {error.start} on") from error
    except UnicodeEncodeError as error:
        raise ValueError("it holds a lone surrogate, which is not text") from error
    except RecursionError as error:
        raise ValueError("it is nested too deep") from error
    except json.JSONDecodeError as error:
        raise ValueError(f"not JSON: {error}") from error
    if not isinstance(value, dict):
        raise ValueError(f"expected an object, found a {type(value).__name__}")
    return value


def read_object(path: Path, next_step: str) -> dict[str, Any]:
    """The object in the file ``path``, of at most 64 MiB.

    Raises ValueError naming ``path``, what is wrong and ``next_step``; OSError if it cannot be
    read.
    """
    with path.open("rb") as file:
        data = file.read(_MAX_BYTES + 1)
    try:
        if len(data) > _MAX_BYTES:
            raise ValueError(f"more than {_MAX_BYTES:,} bytes")
        return parse_object(data)
    except ValueError as error:
        raise AdvisedError(f"{path}: damaged: {error}.", next_step) from error


def _unique(pairs: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    fields: dict[str, Any] = {}
    for key, value in pairs:
        if key in fields:
            raise ValueError(f"duplicate key {key!a}")
        fields[key] = value
    return fields


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is not a JSON number")


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text[:40]} is too large for a float")
    return value
