"""How far a command is: a bar on a terminal, a plain line every ten seconds anywhere else."""

import sys
import time
from types import TracebackType
from typing import TextIO

from pipeline.reporting.lines import Clock, PlainLines, short, size
from pipeline.reporting.printable import printable
from pipeline.reporting.terminal_bar import TerminalBar

__all__ = ["Bar", "short", "size"]


class Bar:
    """How much is done of how much, the rate of this run, and the time left; use with ``with``.

    ``unit`` is counted, with a rate if it ``has_rate``. ``clock`` is what time is read from, and a
    test may wind it.
    """

    def __init__(
        self,
        name: str,
        *,
        unit: str = " tok",
        has_rate: bool = True,
        stream: TextIO | None = None,
        clock: Clock = time.monotonic,
    ) -> None:
        to = stream if stream is not None else sys.stderr
        self._display: TerminalBar | PlainLines = (
            TerminalBar(name, unit, to, has_rate=has_rate)
            if to.isatty()
            else PlainLines(
                name,
                unit,
                lambda text: print(text, file=to, flush=True),
                clock,
                has_rate=has_rate,
            )
        )

    def show(self, num_done: int, num_total: int, figures: str) -> None:
        """Move to ``num_done`` of ``num_total``; ``figures`` are at the end of the line."""
        self._display.show(num_done, num_total, printable(figures, keep=""))

    def say(self, line: str) -> None:
        """A line of its own, above the bar."""
        self._display.say(printable(line))

    def close(self) -> None:
        """Leave the bar where it is."""
        self._display.close()

    def __enter__(self) -> "Bar":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()
