"""Whether an output would lie in a cache that is its input, whatever symbolic links lead there.

A file inside a cache is no part of it, and the next program that opens the cache may refuse it.
"""

from pathlib import Path

from cache_format.errors import CHOOSE_DIRECTORY, ForeignDirectoryError
from cache_format.metadata import layout
from cache_format.storage.base import Storage

_FILE_URL = "file://"
_DIRECTORIES = ("", layout.SHARDS, layout.RECEIPTS, layout.TEACHER)
"""Each may be a link to elsewhere."""


def require_outside(output: Path | str, storage: Storage) -> None:
    """Raise ForeignDirectoryError if ``output`` lies in the cache in ``storage``."""
    target = _place(output)
    if any(_is_in(target, _place(storage.locate(name))) for name in _DIRECTORIES):
        raise ForeignDirectoryError(
            f"{output}: lies in the cache {storage.root}, which is read.", CHOOSE_DIRECTORY
        )


def _place(path: Path | str) -> Path | str:
    """Where a path leads, or a URL without its last slash."""
    if isinstance(path, Path):
        return path.resolve()
    if path.startswith(_FILE_URL):
        return Path(path.removeprefix(_FILE_URL)).resolve()
    return path.rstrip("/") if "://" in path else Path(path).resolve()


def _is_in(target: Path | str, place: Path | str) -> bool:
    if isinstance(target, Path) and isinstance(place, Path):
        return target.is_relative_to(place)
    if isinstance(target, str) and isinstance(place, str):
        return f"{target}/".startswith(f"{place}/")
    return False
