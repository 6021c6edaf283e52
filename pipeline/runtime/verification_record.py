"""Where ``pipeline verify`` remembers what it has read, so that it can be interrupted.

In: the opened cache and what the person asked for. Out: a file outside of the cache, ready to be
written, and a line for the person.
"""

import hashlib
import os
from pathlib import Path

from cache_format.reader import Cache
from cache_format.storage.shard_cache import default_directory
from cache_format.tools.verified_files import require_record


def default_record(cache: Cache) -> Path:
    """One file in the user's cache directory for each cache and place."""
    place = str(cache.storage.root)
    if "://" not in place:
        place = os.path.abspath(place)
    name = f"{cache.cache_id[:16]}-{hashlib.sha256(place.encode()).hexdigest()[:16]}.jsonl"
    return default_directory() / "verified" / name


def prepared_record(cache: Cache, state: Path | None, *, fresh: bool) -> tuple[Path | None, str]:
    """The record, and what to say; no record where the default one cannot be written.

    Raises OSError if the file ``state`` that the person named cannot be, ValueError if there is
    something else in it.
    """
    record = state or default_record(cache)
    if state is not None:
        require_record(state)
    try:
        if fresh:
            record.unlink(missing_ok=True)
        is_begun = record.exists() and record.stat().st_size > 0
        record.parent.mkdir(parents=True, exist_ok=True)
        record.open("ab").close()
    except OSError as error:
        if state is not None:
            raise
        return None, (
            f"{record}: cannot be written ({error.strerror}): if this is interrupted, the next "
            "verification starts over. Choose another file with --state."
        )
    return record, "resuming an interrupted verification" if is_begun else ""
