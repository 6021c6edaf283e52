"""How far a benchmark is, on stderr: what has run, of how many, since when, about how long still.

The time left is that of the turns so far, for as much work: the first ones compile, so at first too
much is said.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Protocol, TextIO

from tqdm import tqdm

from pipeline.reporting.progress_bar import Bar

if TYPE_CHECKING:
    from stages.cache_teacher.reporting.progress import CacheProgress


class Done(Protocol):
    """``Progress.done``, or what stands in its place."""

    def __call__(self, name: str, work: int = 1, /) -> None:
        """``name`` has run, which was so much ``work``."""


def quiet(name: str, work: int = 1, /) -> None:
    """Nothing is shown."""


class Progress:
    """Work that is done, of all that there is; use with ``with``."""

    def __init__(
        self,
        name: str,
        total: int,
        *,
        unit: str = " turns",
        stream: TextIO | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """``unit`` is what ``total`` counts; a turn is one run of one contender."""
        self._bar = Bar(name, unit=unit, has_rate=False, stream=stream, clock=clock)
        self._total, self._done = total, 0
        self._clock, self._begin = clock, clock()
        self._first = self._begin

    def say(self, line: str) -> None:
        """A line of its own."""
        self._bar.say(line)

    def start(self) -> None:
        """The first turn begins; what was before says nothing of the time left."""
        self._first = self._clock()

    def done(self, name: str, work: int = 1, /) -> None:
        """``name`` has run, which was so much ``work``."""
        self._done += work
        now = self._clock()
        left = (now - self._first) * max(0, self._total - self._done) / self._done
        times = [tqdm.format_interval(seconds) for seconds in (now - self._begin, left)]
        figures = f"{name} · {times[0]} elapsed, about {times[1]} left"
        self._bar.show(self._done, self._total, figures)

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()


@contextmanager
def caching_bar() -> Iterator[Callable[["CacheProgress"], None]]:
    """What stage one is to report to: tokens so far, of those it was asked for."""
    with Bar("caching") as bar:
        yield lambda progress: bar.show(progress.tokens_done, progress.tokens_total, progress.phase)
