"""What a benchmark says of how far it is: what has run, of how many, and how long still."""

import io

from benchmarks.progress import Progress


class Clock:
    """Seconds that a test sets."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_time_left_is_that_of_the_turns_so_far() -> None:
    clock, stream = Clock(), io.StringIO()
    with Progress("loss", 4, stream=stream, clock=clock) as progress:
        progress.say("making inputs")
        clock.now += 60
        progress.start()
        clock.now += 20
        progress.done("ours")
        clock.now += 40
        progress.done("dense")
    assert stream.getvalue().splitlines() == [
        "making inputs",
        "loss: 1 of 4 turns (25.0%) · ours · 01:20 elapsed, about 01:00 left",
        "loss: 2 of 4 turns (50.0%) · dense · 02:00 elapsed, about 01:00 left",
    ]


def test_turns_may_be_of_unequal_work() -> None:
    clock, stream = Clock(), io.StringIO()
    with Progress("hybrid", 100, unit=" tok", stream=stream, clock=clock) as progress:
        clock.now += 30
        progress.done("prompt", 10)
        clock.now += 90
        progress.done("training", 90)
    assert stream.getvalue().splitlines() == [
        "hybrid: 10 of 100 tok (10.0%) · prompt · 00:30 elapsed, about 04:30 left",
        "hybrid: 100 of 100 tok (100.0%) · training · 02:00 elapsed, about 00:00 left",
    ]
