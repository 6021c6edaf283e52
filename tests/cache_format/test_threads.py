"""Work in threads: everything is done once, and the first failure ends it."""

from threading import Event, Timer

import pytest

from cache_format.threads import default_num_threads, in_threads


@pytest.mark.parametrize("num_threads", [1, 3])
def test_everything_is_done_once(num_threads: int) -> None:
    done: list[int] = []
    in_threads(done.append, range(100), num_threads)
    assert sorted(done) == list(range(100))


def test_the_first_failure_reaches_the_caller_and_ends_it() -> None:
    done: list[int] = []
    has_failed = Event()

    def work(number: int) -> None:
        if number == 2:
            has_failed.set()
            raise ValueError("number 2")
        assert number < 2 or has_failed.wait(10)
        done.append(number)

    with pytest.raises(ValueError, match="number 2"):
        in_threads(work, range(10_000), 2)
    assert len(done) < 10_000


def test_a_failure_ends_it_while_an_earlier_item_is_still_at_work() -> None:
    begun: list[int] = []
    may_end = Event()

    def work(number: int) -> None:
        begun.append(number)
        if number == 0:
            assert may_end.wait(10)
        elif number == 1:
            Timer(0.3, may_end.set).start()
            raise ValueError("number 1")

    with pytest.raises(ValueError, match="number 1"):
        in_threads(work, range(100), 2)
    assert sorted(begun) == [0, 1]


def test_there_is_a_thread() -> None:
    assert 1 <= default_num_threads() <= 8
