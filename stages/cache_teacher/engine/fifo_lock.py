"""Turns at the device: one unit at a time, in the order in which they were read.

Called by ``make``. A lock would give the device to any of those that wait: then a unit might be
overtaken by later ones, and more units would be open when a run is killed.
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager


class Turns:
    """A queue of units."""

    def __init__(self) -> None:
        self._units: list[int] = []
        self._changed = threading.Condition()
        self._has_ended = False

    def join(self, unit: int) -> None:
        """Stand in the queue."""
        with self._changed:
            self._units.append(unit)

    def leave(self, unit: int) -> None:
        """Leave the queue, from wherever in it; does nothing for who has left."""
        with self._changed:
            if unit in self._units:
                self._units.remove(unit)
            self._changed.notify_all()

    @contextmanager
    def hold(self, unit: int) -> Iterator[None]:
        """Wait for the turn of ``unit``; it has left the queue when the block ends.

        Everyone's turn comes at once when the queue ``end``s.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._has_ended or self._units[0] == unit)
        try:
            yield
        finally:
            self.leave(unit)

    def end(self) -> None:
        """Let nobody wait any more."""
        with self._changed:
            self._has_ended = True
            self._changed.notify_all()
