"""What lies in a cache's directory and is no part of the cache: nothing reads, packs or merges it.

In: the opened cache and the files that its receipts name. Out: each other file and what to do.
"""

from collections.abc import Iterator
from pathlib import Path

from cache_format.metadata import layout
from cache_format.storage.atomic import is_temporary
from cache_format.storage.base import Storage

_ROOT = {
    *(layout.MANIFEST, layout.SPEC, layout.RECIPE),
    *(layout.RECEIPTS, layout.SHARDS, layout.TEACHER),
}


def foreign_files(storage: Storage, known: set[str]) -> Iterator[tuple[Path | str, str]]:
    """Where each foreign file lies, and a message; ``known`` are the files that the spec and the
    receipts name.

    A directory that is foreign is named, not what is in it. Without a readable receipt of
    ``teacher/`` nothing can be said of the files there.
    """
    for name in storage.list_names(""):
        if name not in _ROOT | known:
            yield _named(storage, name)
    for name in storage.list_names(layout.RECEIPTS):
        if not layout.is_receipt(name):
            yield _named(storage, f"{layout.RECEIPTS}/{name}")
    for directory in (layout.SHARDS, layout.TEACHER):
        if directory == layout.SHARDS or any(name.startswith(f"{directory}/") for name in known):
            for name in storage.files_below(directory):
                if name not in known:
                    yield _named(storage, name)


def _named(storage: Storage, name: str) -> tuple[Path | str, str]:
    path = storage.locate(name)
    if is_temporary(Path(name)):
        return path, (
            f"{path}: an incomplete file, which is harmless: a process is writing it, or was "
            "killed and the next run of stage one removes it."
        )
    if name.startswith(f"{layout.SHARDS}/"):
        return path, (
            f"{path}: nothing refers to it. Unless stage one is running on this cache, it was left "
            "by a run that was killed: delete it."
        )
    return path, f"{path}: not part of the cache: nothing reads it. Move it elsewhere."
