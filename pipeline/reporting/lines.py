"""Progress as plain lines, one every ten seconds: for whatever is not a terminal."""

import time
from collections.abc import Callable

from tqdm import tqdm

_SECONDS_BETWEEN = 10.0
Clock = Callable[[], float]


class Pace:
    """Whether it is time to show progress again: every ten seconds, and once at the end."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._last: float | None = None
        self._has_ended = False

    def is_due(self, num_done: int, num_total: int) -> bool:
        """Whether to show this much; to be asked once for each report."""
        now, is_end = self._clock(), num_done >= num_total
        is_due = self._last is None or now - self._last >= _SECONDS_BETWEEN
        if not (is_due or (is_end and not self._has_ended)):
            return False
        self._last, self._has_ended = now, is_end
        return True


class PlainLines:
    """How much is done of how much, the rate of this run, and the time left, to ``write``.

    Without ``has_rate`` only how much is done: of seconds there is no rate.
    """

    def __init__(
        self,
        name: str,
        unit: str,
        write: Callable[[str], None],
        clock: Clock = time.monotonic,
        *,
        has_rate: bool = True,
    ) -> None:
        self._name, self._unit, self._write, self._clock = name, unit, write, clock
        self._has_rate = has_rate
        self._pace = Pace(clock)
        self._first: tuple[float, int] | None = None

    def show(self, num_done: int, num_total: int, figures: str) -> None:
        """A line for ``num_done`` of ``num_total``, if one is due; ``figures`` are at its end."""
        num_done = min(num_done, num_total)  # the last unit may overshoot a budget
        if self._first is None:
            self._first = (self._clock(), num_done)
        if not self._pace.is_due(num_done, num_total):
            return
        begin, num_before = self._first
        share = f"{num_done / max(1, num_total):.1%}"
        done = f"{short(num_done)} of {short(num_total)}{self._unit} ({share})"
        speed = self._speed(num_done - num_before, self._clock() - begin, num_total - num_done)
        self._write(" · ".join(part for part in (f"{self._name}: {done}", speed, figures) if part))

    def say(self, text: str) -> None:
        """``text`` as it is."""
        self._write(text)

    def close(self) -> None:
        """Nothing to do: each line was written whole."""

    def _speed(self, num_done: int, seconds: float, num_left: int) -> str:
        """Rate and time left; nothing before there is a rate."""
        if num_done <= 0 or seconds <= 0 or not self._has_rate:
            return ""
        rate = num_done / seconds
        left = tqdm.format_interval(num_left / rate)
        return f"{short(round(rate))}{self._unit}/s · {left} left"


def short(number: float) -> str:
    """1234567 as ``1.23M``."""
    return str(tqdm.format_sizeof(number)) if number >= 1000 else f"{number:g}"


def size(num_bytes: float) -> str:
    """Bytes in decimal units, as disks are sold."""
    return f"{tqdm.format_sizeof(num_bytes)}B"
