"""The hashes of a published student's files, in the form that ``sha256sum -c`` reads.

In: a model directory. Out: its file ``SHA256SUMS``, or an error where a file that is about to be
read is not what was published. Without that file, nothing is known and nothing is refused: a
directory that transformers has saved has none. The model card is for people to edit and is left
out.
"""

import hashlib
import os
import re
from collections.abc import Iterable
from pathlib import Path

from cache_format.storage.atomic import open_regular
from cache_format.storage.os_errors import reading

CHECKSUMS = "SHA256SUMS"

_LINE = re.compile(r"([0-9a-f]{64})  ([A-Za-z0-9_][A-Za-z0-9._-]*)")
_MOST_BYTES = 1 << 20
_STEP = (
    f"Copy the whole directory again, or export the student anew. If you made the change, delete "
    f"{CHECKSUMS}."
)


def write_checksums(directory: Path) -> None:
    """Write ``SHA256SUMS`` for all files of ``directory`` but ``README.md``."""
    names = sorted(path.name for path in directory.iterdir() if path.name != "README.md")
    lines = [f"{_sha256(directory / name)}  {name}\n" for name in names]
    (directory / CHECKSUMS).write_text("".join(lines), encoding="ascii")


def listed_files(directory: Path) -> set[str]:
    """The names in ``SHA256SUMS``. Raises OSError where there is none, ValueError if damaged."""
    return set(_read(directory / CHECKSUMS))


def require_unchanged(directory: Path, names: Iterable[str]) -> None:
    """Raise ValueError where one of ``names`` that is there differs from ``SHA256SUMS``, if any."""
    path = directory / CHECKSUMS
    if not os.path.lexists(path):
        return
    expected = _read(path)
    for name in names:
        if not (directory / name).is_file():
            continue
        if name not in expected:
            raise ValueError(f"{directory / name}: not listed in {CHECKSUMS}. {_STEP}")
        found = _sha256(directory / name)
        if found != expected[name]:
            raise ValueError(
                f"{directory / name}: changed since it was published: expected SHA-256 "
                f"{expected[name]}, found {found}. {_STEP}"
            )


def _read(path: Path) -> dict[str, str]:
    """Hashes by name."""
    with reading(path), open_regular(path) as source:
        data = source.read(_MOST_BYTES + 1)
    matches = [_LINE.fullmatch(line) for line in data.decode("latin-1").splitlines()]
    if len(data) > _MOST_BYTES or not all(matches):
        raise ValueError(f"{path}: damaged: expected lines of a SHA-256 and a name. {_STEP}")
    return {match[2]: match[1] for match in matches if match is not None}


def _sha256(path: Path) -> str:
    with open_regular(path) as source:
        return hashlib.file_digest(source, "sha256").hexdigest()
