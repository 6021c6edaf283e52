"""What a model's files are, as hashes: of its weights with their configuration, of its tokenizer.

A cache names its teacher by them, and whoever brings that teacher again is checked against them.
"""

import hashlib
from collections.abc import Iterable
from pathlib import Path

from cache_format.storage.atomic import open_regular
from stages.model_files.tokenizer_files import READ_FILES
from stages.model_files.weight_files import weight_files


def weights_sha256(directory: Path) -> str:
    """Of the weights and ``config.json`` in ``directory``.

    The configuration changes what the same weights compute, so it counts as one of them.
    """
    return files_sha256(directory, ["config.json", *weight_files(directory)])


def tokenizer_sha256(directory: Path) -> str:
    """Of those files in ``directory`` that a tokenizer's ids depend on."""
    return files_sha256(directory, [name for name in READ_FILES if (directory / name).is_file()])


def files_sha256(directory: Path, names: Iterable[str]) -> str:
    """One hash over the names and contents of several files."""
    lines = []
    for name in sorted(names):
        with open_regular(directory / name) as file:
            lines.append(f"{hashlib.file_digest(file, 'sha256').hexdigest()}  {name}\n")
    return hashlib.sha256("".join(lines).encode()).hexdigest()
