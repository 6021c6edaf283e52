"""Frozen dataclasses to JSON values and back, strictly; and JSON files that carry their own seal.

A sealed file is a JSON object whose last key, ``seal``, is the SHA-256 of all bytes before it:
one flipped bit anywhere in the file is noticed, without anyone having to agree on how to print a
number. Used by spec, receipts and manifest, and by the files that a training run reads back.
"""

import dataclasses
import hashlib
import json
import re
import types
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from cache_format.errors import CorruptFileError, UnsupportedFormatError
from cache_format.metadata.int64 import INT64, require_int64
from cache_format.metadata.strict_json import parse_object

FORMAT_VERSION = "2.0"
"""That this program writes, and the newest that it reads."""

_SEAL = re.compile(rb',\n "seal": "([0-9a-f]{64})"\n}\n')
_SEAL_BYTES = len(b',\n "seal": ""\n}\n') + 64


def canonical_json(value: object) -> bytes:
    """``value`` as JSON in the one way that is hashed: sorted keys, no blanks, ASCII."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return text.encode("ascii")


def seal(fields: Mapping[str, object]) -> bytes:
    """The bytes of a sealed file that holds ``fields``, one line each item.

    Raises ValueError naming an integer that ``from_plain`` would refuse.
    """
    require_int64(fields)
    return _sealed(fields)


def _sealed(fields: Mapping[str, object]) -> bytes:
    """``seal`` without its check; tests write with it what a faulty program might."""
    body = json.dumps(fields, sort_keys=True, indent=1, allow_nan=False).encode("ascii")
    prefix = body.removesuffix(b"\n}")
    digest = hashlib.sha256(prefix).hexdigest().encode()
    return prefix + b',\n "seal": "' + digest + b'"\n}\n'


def unseal(
    data: bytes, path: Path | str, next_step: str, known_version: str = FORMAT_VERSION
) -> dict[str, Any]:
    """The fields of the sealed file ``path`` that holds ``data``.

    Raises CorruptFileError if the seal is broken and UnsupportedFormatError if its format's
    major version is not that of ``known_version``; both name ``path``, and the first ``next_step``.
    """
    prefix, suffix = data[:-_SEAL_BYTES], data[-_SEAL_BYTES:]
    match = _SEAL.fullmatch(suffix)
    if match is None or hashlib.sha256(prefix).hexdigest().encode() != match[1]:
        fields = _parsed_or_empty(data)
        _refuse_foreign_version(fields, path, known_version)
        problem = f"its seal does not match its {len(data)} bytes"
        if fields and "seal" not in fields:
            problem = "it has no seal, or an older version of xlstm-distill wrote it without one"
        raise CorruptFileError(f"{path}: damaged: {problem}.", next_step)
    try:
        fields = parse_object(prefix + b"}")
    except ValueError as error:
        raise CorruptFileError(f"{path}: {error}.", next_step) from error
    _refuse_foreign_version(fields, path, known_version)
    if "format_version" not in fields:
        raise CorruptFileError(f"{path}: holds no format_version.", next_step)
    return fields


def to_plain(value: Any) -> Any:
    """``value`` (dataclass, tuple, mapping, scalar) as JSON types; whole floats stay floats.

    A dataclass's field that is None by default is left out while it is None: what an older version
    does not know leaves no trace unless it is used.
    """
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        hints, optional = get_type_hints(type(value)), _optional_fields(type(value))
        return {
            name: _to_plain_as(hint, getattr(value, name))
            for name, hint in hints.items()
            if name not in optional or getattr(value, name) is not None
        }
    if isinstance(value, Mapping):
        return {key: to_plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [to_plain(item) for item in value]
    return value


def from_plain(hint: Any, value: object, where: str = "", *, ignore_unknown: bool = False) -> Any:
    """A value of the type ``hint`` (dataclass, tuple, dict, scalar) from JSON types, strictly.

    Raises ValueError naming the dotted field that is missing or of another type. Fields that a
    dataclass does not have are an error too, unless they are to be ignored.
    """
    if hint is Any:
        return value
    if dataclasses.is_dataclass(hint):
        return _from_plain_dataclass(hint, value, where, ignore_unknown)
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is Literal and value in arguments:
        return value
    if origin in (Union, types.UnionType):
        return None if value is None else from_plain(_inner(hint), value, where)
    if origin is tuple and isinstance(value, list):
        kinds = [arguments[0]] * len(value) if arguments[-1] is Ellipsis else list(arguments)
        if len(kinds) == len(value):
            return tuple(
                from_plain(kind, item, f"{where}[{index}]", ignore_unknown=ignore_unknown)
                for index, (kind, item) in enumerate(zip(kinds, value, strict=True))
            )
    if origin is dict and isinstance(value, dict):
        return {
            key: from_plain(arguments[1], item, f"{where}.{key}") for key, item in value.items()
        }
    if hint in (int, float) and type(value) is int and value not in INT64:
        raise ValueError(f"{where}: expected a number of 64 bits, found one of more")
    if hint is float and type(value) is int:
        return float(value)
    if type(value) is hint:
        return value
    raise ValueError(f"{where}: expected {getattr(hint, '__name__', hint)}, found {value!r}")


def _to_plain_as(hint: Any, value: Any) -> Any:
    if get_origin(hint) in (Union, types.UnionType) and value is not None:
        hint = _inner(hint)
    if hint is float:
        return float(value)
    if get_origin(hint) is tuple and get_args(hint)[-1] is Ellipsis:
        return [_to_plain_as(get_args(hint)[0], item) for item in value]
    return to_plain(value)


def _from_plain_dataclass(cls: Any, value: object, where: str, ignore_unknown: bool) -> Any:
    if not isinstance(value, dict):
        raise ValueError(f"{where}: expected an object, found {value!r}")
    dot = f"{where}." if where else ""
    hints, optional = get_type_hints(cls), _optional_fields(cls)
    unknown = set() if ignore_unknown else value.keys() - hints.keys()
    for name in sorted((hints.keys() - value.keys() - optional) | unknown):
        raise ValueError(f"{dot}{name}: {'missing' if name in hints else 'not a known field'}")
    # Null where ``to_plain`` leaves a field out would be a second way to write the same.
    hints |= {name: _inner(hints[name]) for name in optional}
    return cls(
        **{
            name: from_plain(hint, value[name], dot + name, ignore_unknown=ignore_unknown)
            for name, hint in hints.items()
            if name in value
        }
    )


def _optional_fields(cls: Any) -> set[str]:
    """The fields of a dataclass that are None unless they are given."""
    return {field.name for field in dataclasses.fields(cls) if field.default is None}


def _inner(hint: Any) -> Any:
    """T of ``T | None``."""
    return next(argument for argument in get_args(hint) if argument is not types.NoneType)


def _parsed_or_empty(data: bytes) -> dict[str, Any]:
    try:
        return parse_object(data)
    except ValueError:
        return {}


def _refuse_foreign_version(fields: dict[str, Any], path: Path | str, known_version: str) -> None:
    version = fields.get("format_version")
    if isinstance(version, str) and re.fullmatch(r"[0-9]+\.[0-9]+", version):
        known = known_version.partition(".")[0]
        if version.partition(".")[0] != known:
            raise UnsupportedFormatError(
                f"{path}: format version {version}, but this program reads {known}.x. Use the "
                "version of xlstm-distill that wrote it, or a newer one."
            )
