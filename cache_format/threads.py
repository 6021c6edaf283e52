"""Work on many items in a few threads; the first failure ends it and reaches the caller.

Hashing, compression, reading and writing let other threads run meanwhile, so threads are enough.
Called by the verification, the export and the merge.
"""

import os
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from threading import Event
from typing import TypeVar

_T = TypeVar("_T")


def default_num_threads() -> int:
    """As many as this process has cores, but at most 8: more would only wait for the disk."""
    return min(8, len(os.sched_getaffinity(0)))


def in_threads(work: Callable[[_T], None], items: Iterable[_T], num_threads: int) -> None:
    """Call ``work`` on every item, begun in the order of ``items``.

    After a failure, or Ctrl-C, nothing more is begun; what has begun is waited for.
    """
    has_ended = Event()

    def work_unless_ended(item: _T) -> None:
        if has_ended.is_set():
            return
        try:
            work(item)
        except BaseException:
            has_ended.set()  # at once: the caller may still wait for an earlier item
            raise

    with ThreadPoolExecutor(num_threads) as pool:
        try:
            futures = [pool.submit(work_unless_ended, item) for item in items]
            for future in futures:
                future.result()
        finally:
            has_ended.set()
