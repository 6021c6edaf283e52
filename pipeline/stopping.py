"""Ctrl-C and SIGTERM as a request: a run finishes what it is at, saves, and stops.

In: the signals that a terminal, a scheduler or torchrun sends. Out: ``StopRequest``, which says
whether one has come. Called by ``train-student``.
"""

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from pipeline.session import Terminated

_SAID = b"\nStopping after this step, with a checkpoint. Once more stops at once.\n"


class StopRequest:
    """Whether to stop. Calling it tells."""

    def __init__(self) -> None:
        self._signal: int | None = None

    def __call__(self) -> bool:
        return self._signal is not None

    def receive(self, number: int, frame: FrameType | None) -> None:
        """A signal: the first asks, the next one of them ends the command.

        Not under torchrun, where a process gets each twice: the terminal's, and torchrun's own.
        """
        is_alone = "TORCHELASTIC_RUN_ID" not in os.environ
        if self._signal is None:
            self._signal = number
            if is_alone:
                os.write(2, _SAID)  # a handler may interrupt a print, so it does not print
        elif is_alone:
            raise self.exception()

    def exception(self) -> KeyboardInterrupt:
        """What ends the command as the signal alone would have."""
        return Terminated() if self._signal == signal.SIGTERM else KeyboardInterrupt()


@contextmanager
def asked_to_stop() -> Iterator[StopRequest]:
    """Inside the block signals only ask. Signals reach the main thread alone."""
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request
        return
    before = {
        number: signal.signal(number, request.receive)
        for number in (signal.SIGINT, signal.SIGTERM)
        # One that is ignored, as in a shell's background jobs, stays so.
        if signal.getsignal(number) is not signal.SIG_IGN
    }
    try:
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
