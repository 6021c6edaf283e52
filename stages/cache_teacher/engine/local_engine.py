"""The engine of one process: a few threads make one unit each, so that their work overlaps.

In: where to get the next unit, and what makes it. Out: every unit made, or the first failure.
"""

import threading
from collections.abc import Callable
from queue import SimpleQueue

from cache_format.metadata.receipt import ShardEntry
from stages.cache_teacher.corpus.unit_reader import PreparedUnit
from stages.cache_teacher.engine.unit_maker import UNITS_IN_FLIGHT, UnitMaker


def make_units(
    maker: UnitMaker,
    next_unit: Callable[[], PreparedUnit | None],
    made: Callable[[ShardEntry], None],
) -> None:
    """Make what ``next_unit`` gives until it gives None; tell ``made`` of each, in this thread.

    The first failure, or Ctrl-C, stops the other threads; it is raised once they have ended, with
    the units published that the device was done with.
    """
    outcomes: SimpleQueue[ShardEntry | BaseException | None] = SimpleQueue()

    def work() -> None:
        try:
            while (prepared := next_unit()) is not None:
                outcomes.put(maker.finish(prepared))
            outcomes.put(None)
        except BaseException as error:
            outcomes.put(error)  # before the others fail for this one's sake
            maker.stop()

    # Daemons: whoever types Ctrl-C twice does not wait for them.
    threads = [
        threading.Thread(target=work, name=f"unit-{number}", daemon=True)
        for number in range(UNITS_IN_FLIGHT)
    ]
    try:
        for thread in threads:
            thread.start()
        _wait(outcomes, len(threads), made)
    except BaseException:
        maker.stop()
        raise
    finally:
        for thread in threads:
            if thread.ident is not None:  # Ctrl-C may come before all have been started
                thread.join()


def _wait(
    outcomes: "SimpleQueue[ShardEntry | BaseException | None]",
    num_running: int,
    made: Callable[[ShardEntry], None],
) -> None:
    while num_running:
        outcome = outcomes.get()
        if isinstance(outcome, BaseException):
            raise outcome
        if outcome is None:
            num_running -= 1
        else:
            made(outcome)
