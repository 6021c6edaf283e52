"""The JSON files that a run reads back: ``run.json``, a checkpoint's state, the trackers' names.

Each is the fields of a dataclass in a sealed file (``cache_format.metadata.sealed_json``), so that
one changed bit is noticed, and every field is checked for its type.
"""

from pathlib import Path
from typing import Any, TypeVar

from cache_format.errors import CorruptFileError
from cache_format.metadata import sealed_json
from cache_format.storage.atomic import open_regular, publish_bytes

RUN_FORMAT = "1.0"
"""Version of these files; the part before the point changes where older ones cannot be read."""

_File = TypeVar("_File")


def run_file_bytes(content: Any) -> bytes:
    """The bytes of a file that holds the dataclass ``content``."""
    return sealed_json.seal({"format_version": RUN_FORMAT} | sealed_json.to_plain(content))


def read_run_file(path: Path) -> bytes:
    """The bytes of the file ``path``, which is an ordinary one."""
    with open_regular(path) as file:
        return file.read()


def write_run_file(path: Path, content: Any) -> None:
    """Make ``path`` hold the dataclass ``content``, in place of what it held before.

    Raises CorruptFileError naming ``path`` where it could not be read again.
    """
    try:
        data = run_file_bytes(content)
    except ValueError as error:
        raise CorruptFileError(f"{path}: not written: {error}.", "") from error
    parse_run_file(type(content), data, path, "")  # or what was good would be lost
    publish_bytes(path, data)


def parse_run_file(kind: type[_File], data: bytes, path: Path, next_step: str) -> _File:
    """The ``kind`` in the file ``path`` that holds ``data``.

    Raises CorruptFileError, or UnsupportedFormatError for another version's, naming ``path`` and
    ``next_step``.
    """
    fields = sealed_json.unseal(data, path, next_step, RUN_FORMAT)
    del fields["format_version"]
    try:
        content: _File = sealed_json.from_plain(kind, fields)
    except ValueError as error:
        raise CorruptFileError(f"{path}: damaged: {error}.", next_step) from error
    return content
