"""Ctrl-C and SIGTERM as a request: a run abandons what it is at, saves, and stops.

In: the signals that a terminal, a scheduler or torchrun sends. Out: ``SignalRequest``, which says
whether one has come. A handler runs between two instructions of Python: however long a compiler is
waited for, it interrupts that; one operation of PyTorch it does not.
"""

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from pipeline.runtime.session import Terminated
from stages.train_student.trainer.stopping import StopNow

_SAID = b"\nStopping; the last finished step is saved. Once more stops at once.\n"


class SignalRequest:
    """Whether a signal has come; a process that is alone may be interrupted by it, too."""

    def __init__(self) -> None:
        self._signal: int | None = None
        self._is_interruptible = False
        # torchrun's processes get two, the terminal's and its own, and wait for one another.
        self._is_alone = "TORCHELASTIC_RUN_ID" not in os.environ

    def is_made(self) -> bool:
        """Whether to stop."""
        return self._signal is not None

    @contextmanager
    def interruptible(self) -> Iterator[None]:
        """A block in which the first signal raises StopNow, too; at once if it has come before."""
        self._is_interruptible = self._is_alone
        try:
            if self._is_interruptible and self.is_made():
                raise StopNow
            yield
        finally:
            self._is_interruptible = False

    def receive(self, number: int, frame: FrameType | None) -> None:
        """A signal: the first asks, the next one of them ends the command."""
        if self._signal is None:
            self._signal = number
            if self._is_alone:
                os.write(2, _SAID)  # a handler may interrupt a print, so it does not print
            if self._is_interruptible:
                raise StopNow
        elif self._is_alone:
            raise self.exception()

    def exception(self) -> KeyboardInterrupt:
        """What ends the command as the signal alone would have."""
        return Terminated() if self._signal == signal.SIGTERM else KeyboardInterrupt()


@contextmanager
def asked_to_stop() -> Iterator[SignalRequest]:
    """Inside the block signals only ask. Signals reach the main thread alone."""
    request = SignalRequest()
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
