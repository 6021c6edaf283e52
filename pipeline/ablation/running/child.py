"""A run of a sweep does not outlive the process that started it.

Its standard input is a pipe that nobody writes to. When the sweep closes it, or ends, killed or
not, the run gets SIGTERM from itself: it saves a checkpoint and ends. So no run goes on unseen
beside those of a sweep that was started again.
"""

import os
import select
import signal
import threading

_STDIN = 0
_ASKING = {signal.SIGTERM, signal.SIGINT}


def end_with_parent() -> None:
    """Send this process SIGTERM when its standard input ends; for the main thread to call."""
    received, receives = os.pipe()
    os.set_blocking(receives, False)
    signal.set_wakeup_fd(receives, warn_on_full_buffer=False)
    threading.Thread(target=_wait_for_the_end, args=(received,), daemon=True).start()


def _wait_for_the_end(received: int) -> None:
    """Of standard input. ``received`` has the numbers of signals that came.

    A scheduler sends SIGTERM to all processes: a second one would end the run without saving.
    """
    is_asked = False
    while True:
        ready, _, _ = select.select([_STDIN, received], [], [])
        if received in ready:
            is_asked |= not _ASKING.isdisjoint(os.read(received, 64))
        if _STDIN in ready and not os.read(_STDIN, 1):
            break
    if not is_asked:
        os.kill(os.getpid(), signal.SIGTERM)
