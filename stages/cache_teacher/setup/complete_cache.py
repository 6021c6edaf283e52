"""Find a cache that already holds everything that a run asks for.

Such a run writes nothing, so it succeeds on a finished cache that is read-only.
"""

from collections.abc import Callable
from pathlib import Path

import cache_format
from cache_format.errors import CacheError
from cache_format.metadata import layout
from cache_format.metadata.completeness import is_complete
from cache_format.metadata.manifest import Manifest
from cache_format.metadata.spec import CacheSpec
from cache_format.reader import Cache
from cache_format.storage.base import on_each
from cache_format.tables.shared_files import files_of


def find_complete_cache(
    out: Path | str, spec: CacheSpec, num_tokens: int, has_unit: Callable[[int], bool]
) -> Manifest | None:
    """The manifest of the finished cache at ``out``; None if there is something to make or mend.

    ``has_unit`` tells of a unit whether the corpus has it.
    """
    try:
        cache = cache_format.open(out)
        if cache.cache_id != spec.cache_id or not _is_whole(cache):
            return None
    except CacheError:
        return None  # whoever writes to it will say what is wrong
    entries = {entry.unit: entry for entry in cache.manifest.shards}
    has_gap = list(entries) != list(range(len(entries)))
    if has_gap or not is_complete(entries, num_tokens, has_unit):
        return None
    return cache.manifest


def _is_whole(cache: Cache) -> bool:
    """Whether every file is there in its full size, and no unit that the manifest does not name."""
    sizes = {entry.file: entry.num_bytes for entry in cache.manifest.shards}
    for name, (num_bytes, _) in cache.attachments().items():
        sizes[f"{layout.TEACHER}/{name}"] = num_bytes
    sizes |= {name: file.num_bytes for name, file in files_of(cache.spec).items()}
    units = [entry.unit for entry in cache.manifest.shards]
    return (
        cache.manifest.teacher_receipt_sha256 is not None
        and layout.receipt_units(cache.storage) == units
        and on_each(cache.storage, cache.storage.size, sizes) == list(sizes.values())
    )
