"""Work in threads: everything is done once, and the first failure ends it."""

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from threading import Event, Timer

import pytest

from cache_format.threads import default_num_threads, in_threads, map_in_order


@pytest.mark.parametrize("num_threads", [1, 3])
def test_in_threads_does_every_item_once(num_threads: int) -> None:
    done: list[int] = []
    in_threads(done.append, range(100), num_threads)
    assert sorted(done) == list(range(100))


def test_the_first_failure_reaches_the_caller_and_stops_the_rest() -> None:
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


def test_a_failure_stops_the_rest_while_an_earlier_item_still_runs() -> None:
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


def test_the_default_number_of_threads_is_1_to_8() -> None:
    assert 1 <= default_num_threads() <= 8


def test_map_in_order_gives_results_in_input_order() -> None:
    def work(number: int) -> int:
        time.sleep(0.002 * (number % 3))
        return number * number

    with ThreadPoolExecutor(4) as pool:
        assert list(map_in_order(work, range(50), pool, 5)) == [n * n for n in range(50)]
        assert list(map_in_order(work, [], pool)) == []


def test_only_a_few_items_are_taken_ahead() -> None:
    taken: list[int] = []

    def items() -> Iterator[int]:
        for number in range(20):
            taken.append(number)
            yield number

    with ThreadPoolExecutor(2) as pool:
        for index, _ in enumerate(map_in_order(str, items(), pool, 3)):
            assert len(taken) <= index + 1 + 3
    assert taken == list(range(20))


def test_the_failure_of_the_first_item_that_fails_reaches_the_caller() -> None:
    begun: list[int] = []
    later_has_failed = Event()

    def work(number: int) -> int:
        begun.append(number)
        if number == 1:
            assert later_has_failed.wait(10)
            raise ValueError("number 1")
        if number == 2:
            later_has_failed.set()
            raise ValueError("number 2")
        return number

    with ThreadPoolExecutor(2) as pool:
        results = map_in_order(work, range(1000), pool, 4)
        assert next(results) == 0
        with pytest.raises(ValueError, match="number 1"):
            next(results)
    assert len(begun) <= 6


def test_an_error_of_the_input_iterator_reaches_the_caller() -> None:
    def items() -> Iterator[int]:
        yield from range(5)
        raise OSError("no more")

    with ThreadPoolExecutor(2) as pool:
        results = map_in_order(str, items(), pool, 2)
        with pytest.raises(OSError, match="no more"):
            list(results)


def test_a_caller_that_stops_early_leaves_no_running_items() -> None:
    may_end, done = Event(), []

    def work(number: int) -> None:
        if number:
            assert may_end.wait(10)
            done.append(number)

    with ThreadPoolExecutor(1) as pool:
        results = map_in_order(work, range(100), pool, 8)
        next(results)
        results.close()  # type: ignore[attr-defined]
        may_end.set()
    assert len(done) <= 1
