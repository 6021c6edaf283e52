"""How long a cache took to be made, kept beside it.

In: a directory with a cache in it, and the function that fills it. Out: seconds, those of earlier
processes included.
"""

import json
import time
from collections.abc import Callable
from pathlib import Path

from cache_format.metadata.manifest import Manifest

_NAME = "cache-seconds.json"


def timed(work: Path, make: Callable[[], tuple[Manifest, int]]) -> float | None:
    """Run ``make``, which returns the cache's manifest and how many of its tokens are new.

    Returns the seconds in which all of its tokens were made, or None where some were made unseen,
    such as by a process that was killed, or before there was a record.
    """
    kept = work / _NAME
    record = json.loads(kept.read_text()) if kept.exists() else {"seconds": 0.0, "tokens": 0}
    begin = time.perf_counter()
    manifest, num_made = make()
    if num_made:
        record["seconds"] = round(record["seconds"] + time.perf_counter() - begin, 3)
        record["tokens"] += num_made
        unfinished = kept.with_suffix(".tmp")
        unfinished.write_text(json.dumps(record))
        unfinished.replace(kept)
    seconds: float = record["seconds"]
    return seconds if record["tokens"] == manifest.num_tokens else None
