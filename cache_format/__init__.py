"""The cache on disk: what stage one writes and stage two reads. ``README.md`` is its spec.

``cache_format.open(path)`` is the way in for readers; ``cache_format.writer.CacheWriter`` for
writers. Needs numpy and pyarrow; importing this package loads neither.
"""

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cache_format.reader import Cache

__all__ = ["open"]


def open(path: str | Path, *, allow_incomplete: bool = False) -> "Cache":
    """Open the cache at ``path`` for reading; see ``cache_format.reader.open_cache``."""
    from cache_format.reader import open_cache

    return open_cache(path, allow_incomplete=allow_incomplete)
