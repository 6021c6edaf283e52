"""A lock that units acquire in the order in which they were enqueued.

An ordinary lock wakes any of its waiters: later units could overtake earlier ones, and more units
would be unfinished when a run is killed.
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager


class FifoLock:
    """Held by one unit at a time, in the order of ``enqueue``."""

    def __init__(self) -> None:
        self._units: list[int] = []
        self._changed = threading.Condition()
        self._has_ended = False

    def enqueue(self, unit: int) -> None:
        """Add ``unit`` to the end of the queue."""
        with self._changed:
            self._units.append(unit)

    def cancel(self, unit: int) -> None:
        """Remove ``unit`` from the queue, if it is there."""
        with self._changed:
            if unit in self._units:
                self._units.remove(unit)
            self._changed.notify_all()

    @contextmanager
    def acquire(self, unit: int) -> Iterator[None]:
        """Wait for the turn of ``unit``; it has left the queue when the block ends.

        Everyone's turn comes at once when the queue ``end``s.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._has_ended or self._units[0] == unit)
        try:
            yield
        finally:
            self.cancel(unit)

    def open(self) -> None:
        """Let nobody wait any more."""
        with self._changed:
            self._has_ended = True
            self._changed.notify_all()
