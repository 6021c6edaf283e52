"""Retry transient failures a bounded number of times."""

import time
from collections.abc import Callable, Iterable
from itertools import chain
from typing import TypeVar

_T = TypeVar("_T")


def retrying(
    action: Callable[[], _T],
    pauses_seconds: Iterable[float],
    *,
    may_pass: Callable[[Exception], bool],
    given_up: Callable[[Exception], Exception],
) -> _T:
    """What ``action`` returns; it is called once more after each of ``pauses_seconds``.

    Raises at once a failure that will not pass, and the error ``given_up`` of the last one once
    there is no pause left.
    """
    for pause in chain(pauses_seconds, [None]):
        try:
            return action()
        except Exception as error:
            if not may_pass(error):
                raise
            if pause is None:
                raise given_up(error) from error
        time.sleep(pause)
    raise AssertionError("the last try returns or raises")
