"""The cache on disk: what stage one writes and stage two reads. ``README.md`` is its spec.

``cache_format.open(path)`` is the way in for readers; ``cache_format.writer.CacheWriter`` for
writers. Needs numpy and pyarrow, and fsspec for caches at a URL; importing this package
loads none of them.
"""

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cache_format.reader import Cache

__all__ = ["open"]


def open(
    path: str | Path,
    *,
    allow_incomplete: bool = False,
    local_directory: str | Path | None = None,
    local_bytes: int | None = None,
) -> "Cache":
    """Open the cache at ``path``, a directory or a URL, and check its manifest.

    >>> import cache_format
    >>> cache = cache_format.open("my-cache")
    >>> unit, row = cache.read_row("train", 0)
    >>> len(row.token_ids) == cache.spec.sequence_length + 1
    True

    With ``allow_incomplete``, a cache that is still being written can be opened too, with the
    shards that are finished so far. Raises IncompleteCacheError otherwise, ForeignDirectoryError if
    there is no cache, CorruptFileError if the manifest is damaged.

    Of a cache at a URL, shards are copied into ``local_directory`` (default: ``xlstm-distill`` in
    ``$XDG_CACHE_HOME`` or ``~/.cache``) as they are read, ``local_bytes`` of them at most (20 GiB).
    """
    from cache_format.opening import open_cache
    from cache_format.storage.base import LocalSpace

    default = LocalSpace()
    space = LocalSpace(
        directory=None if local_directory is None else Path(local_directory),
        num_bytes=default.num_bytes if local_bytes is None else local_bytes,
    )
    return open_cache(path, allow_incomplete=allow_incomplete, space=space)
