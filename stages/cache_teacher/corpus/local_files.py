"""Find the files of a local corpus and their split.

A path is a file, a directory of files of one format, or what ``datasets.save_to_disk`` wrote. Of a
directory, patterns may name the files, also those in directories within it.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from stages.cache_teacher.corpus.file_patterns import matching
from stages.cache_teacher.corpus.formats.document_file import DataFile
from stages.cache_teacher.corpus.formats.registry import SUPPORTED, find_format, format_of
from stages.cache_teacher.corpus.open_file import sha256_of

_STATE, _SPLITS = "state.json", "dataset_dict.json"


def is_local(corpus: str) -> bool:
    """Whether ``corpus`` names a local path. Raises ValueError for one that is not there."""
    if not corpus:
        raise ValueError(
            f"corpus: not set: expected a Hub dataset, or a file ending in {SUPPORTED}"
        )
    path = Path(corpus).expanduser()
    looks_local = corpus.startswith(("/", "./", "../", "~")) or find_format(corpus) is not None
    if looks_local and not path.exists():
        raise ValueError(f"corpus {corpus!r}: no such file or directory")
    return looks_local or path.exists()


def find_local_files(
    corpus: str, split: str, patterns: Sequence[str] | None = None
) -> tuple[str, list[DataFile]]:
    """The corpus's split, where it has splits, and its files in reading order, pinned by hash.

    Raises ValueError as ``find_local_paths`` does.
    """
    root = Path(corpus).expanduser().resolve()
    found_split, paths = find_local_paths(corpus, split, patterns)
    top = root if root.is_dir() else root.parent
    return found_split, [
        DataFile(str(path), path.relative_to(top).as_posix(), sha256_of(str(path)))
        for path in paths
    ]


def find_local_paths(
    corpus: str, split: str, patterns: Sequence[str] | None = None
) -> tuple[str, list[Path]]:
    """The corpus's split, where it has splits, and where its files lie; none is opened.

    Raises ValueError where there are none, or files of more than one format.
    """
    root = Path(corpus).expanduser().resolve()
    if patterns is not None:
        return "", _matching_files(root, patterns)
    if (root / _SPLITS).is_file():
        return split, _saved_files(_directory_of_split(root, split))
    if (root / _STATE).is_file():
        return "", _saved_files(root)
    paths = [root]
    if root.is_dir():
        paths = sorted(path for path in root.iterdir() if path.is_file() and _holds_data(path.name))
    if not paths:
        raise ValueError(
            f"corpus {root}: the directory itself holds no file to read. A corpus is a file or a "
            f"directory of files ending in {SUPPORTED}."
        )
    require_one_format(f"corpus {root}", [path.name for path in paths])
    return "", paths


def _matching_files(root: Path, patterns: Sequence[str]) -> list[Path]:
    if not root.is_dir():
        raise ValueError(
            f"corpus {root}: is a file, so corpus_data_files has nothing to choose from. Leave it "
            "out, or set corpus to a directory."
        )
    there = (path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file())
    names = matching(f"corpus {root}", there, patterns)
    require_one_format(f"corpus {root}", names)
    return [root / name for name in names]


def require_one_format(what: str, names: Sequence[str]) -> None:
    """Raise ValueError where ``names`` end in more than one format, or in none that is known."""
    first = format_of(names[0])
    for name in names:
        if format_of(name) is not first:
            raise ValueError(
                f"{what}: files of more than one kind ({names[0]} is {first.name}, {name} "
                f"{format_of(name).name}). Put each kind into a directory of its own."
            )


def _holds_data(name: str) -> bool:
    """Hidden files, markers such as _SUCCESS and a README beside the data are no documents."""
    return not name.startswith((".", "_")) and not name.lower().endswith(".md")


def _directory_of_split(root: Path, split: str) -> Path:
    """The directory of one split of a saved ``DatasetDict``."""
    splits = _read_json(root / _SPLITS).get("splits")
    names = [str(name) for name in splits] if isinstance(splits, list) else []
    if split not in names or not (root / split / _STATE).is_file():
        raise ValueError(
            f"corpus {root}: no split {split!r}; it has {', '.join(sorted(names)) or 'none'}. "
            "Set corpus_split to one of them."
        )
    return root / split


def _saved_files(directory: Path) -> list[Path]:
    """The Arrow files of a saved ``Dataset``."""
    state = directory / _STATE
    listed = _read_json(state).get("_data_files")
    entries = listed if isinstance(listed, list) else []
    names = [entry.get("filename") for entry in entries if isinstance(entry, dict)]
    for name in names or [None]:
        if not isinstance(name, str) or Path(name).name != name or not name.endswith(".arrow"):
            raise ValueError(f"{state}: expected the names of .arrow files beside it, found {name}")
        if not (directory / name).is_file():
            raise ValueError(f"{state}: names {name}, which is not there. Save the dataset again.")
    return [directory / str(name) for name in names]


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: not valid JSON: {error}") from error
    return value if isinstance(value, dict) else {}
