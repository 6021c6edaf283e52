"""Work on many items in a few threads; the first failure ends it and reaches the caller.

Hashing, compression, reading and writing let other threads run meanwhile, so threads are enough.
"""

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from itertools import islice
from threading import Event
from typing import TypeVar

_T = TypeVar("_T")
_U = TypeVar("_U")


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


def map_in_order(
    work: Callable[[_T], _U],
    items: Iterable[_T],
    pool: Executor,
    look_ahead: int | None = None,
) -> Iterator[_U]:
    """``work``'s results in the order of ``items``, at most ``look_ahead`` of them under way.

    By default twice as many as there are threads. The failure of the first item that fails reaches
    the caller; what has not begun by then never does.
    """
    remaining = iter(items)
    pending: deque[Future[_U]] = deque()
    try:
        for item in islice(remaining, look_ahead or 2 * default_num_threads()):
            pending.append(pool.submit(work, item))
        while pending:
            result = pending.popleft().result()
            for item in islice(remaining, 1):
                pending.append(pool.submit(work, item))
            yield result
    finally:
        for future in pending:
            future.cancel()
