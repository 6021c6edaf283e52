"""``recipe.toml`` in a cache: what its last run was told, sealed as the JSON files beside it are.

Its last line is a comment that holds the SHA-256 of the cache's identity and of all bytes before
it. The manifest does not name it: runs with other budgets, and several at once, write it anew while
the cache is read.
"""

import hashlib
import re
from pathlib import Path

from cache_format.errors import CorruptFileError
from cache_format.metadata import layout
from cache_format.storage.base import Storage, read_file

MAX_BYTES = 1 << 20
_SEAL = re.compile(rb"# seal ([0-9a-f]{64})\n")
_SEAL_BYTES = len(b"# seal \n") + 64


def seal_recipe(toml: str, cache_id: str) -> bytes:
    """The bytes of ``recipe.toml`` in the cache ``cache_id``."""
    body = toml.encode()
    if body and not body.endswith(b"\n"):
        body += b"\n"
    return body + f"# seal {_digest(body, cache_id)}\n".encode()


def read_recipe(storage: Storage, cache_id: str, next_step: str) -> bytes:
    """The bytes of ``recipe.toml``, its seal compared.

    Raises MissingFileError or CorruptFileError, which end with ``next_step``.
    """
    path = storage.locate(layout.RECIPE)
    num_bytes = storage.size(layout.RECIPE)
    if num_bytes is not None and num_bytes > MAX_BYTES:
        raise CorruptFileError(f"{path}: {num_bytes} bytes, more than {MAX_BYTES}.", next_step)
    data = read_file(storage, layout.RECIPE, next_step)
    _require_seal(data, path, cache_id, next_step)
    return data


def _require_seal(data: bytes, path: Path | str, cache_id: str, next_step: str) -> None:
    body, last = data[:-_SEAL_BYTES], data[-_SEAL_BYTES:]
    match = _SEAL.fullmatch(last)
    if match is None:
        raise CorruptFileError(
            f"{path}: its last line is not a seal: the file is damaged, or was written by hand or "
            "by a version that did not seal it.",
            next_step,
        )
    if match[1].decode() != _digest(body, cache_id):
        raise CorruptFileError(
            f"{path}: its seal does not match: the file was changed, is damaged, or belongs to "
            "another cache.",
            next_step,
        )


def _digest(body: bytes, cache_id: str) -> str:
    return hashlib.sha256(cache_id.encode() + body).hexdigest()
