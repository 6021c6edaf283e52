"""Try again what a network let fail, with growing pauses, a bounded number of times.

What is passing is told from what will stay: a connection that was cut, a time-out, a server that is
overloaded (HTTP 5xx, 429, 408); not that something is not there, or not allowed.
"""

import random
from collections.abc import Callable, Iterator
from typing import TypeVar

from cache_format.errors import Action, NextStep
from cache_format.storage import retry

_T = TypeVar("_T")

NUM_TRIES = 5
_FIRST_PAUSE_SECONDS = 1.0
_PASSING_STATUS = (408, 425, 429)
# By name, because the libraries that raise them may not be installed: aiohttp's and requests',
# httpx's, urllib3's and botocore's bases of what goes wrong on the way.
_LASTING_NAMES = {"NetworkFailedError", "OfflineModeIsEnabled"}
_PASSING_NAMES = {
    "ChunkedEncodingError",
    "ClientConnectionError",
    "ClientPayloadError",
    "ConnectTimeoutError",
    "ConnectionError",
    "EndpointConnectionError",
    "FSTimeoutError",
    "HTTPClientError",
    "IncompleteRead",
    "ProtocolError",
    "ReadTimeoutError",
    "Timeout",
    "TransportError",
}


class NetworkFailedError(OSError):
    """The network has failed so often that it was given up."""

    next_step = NextStep("Run again.", Action.RUN_AGAIN)


def retrying(action: Callable[[], _T], what: str, *, first_pause: float | None = None) -> _T:
    """What ``action`` returns; it is called up to ``NUM_TRIES`` times.

    Raises NetworkFailedError naming ``what`` once it has failed so often, and at once what will
    not pass.
    """
    first = _FIRST_PAUSE_SECONDS if first_pause is None else first_pause

    def given_up(error: Exception) -> NetworkFailedError:
        return NetworkFailedError(
            f"{what}: the network has failed {NUM_TRIES} times in a row, the last time with "
            f"{_text(error)}. Check the connection, then run again: finished work is kept"
        )

    # Not all workers at the same moment.
    pauses = (first * 2**i * random.uniform(0.8, 1.2) for i in range(NUM_TRIES - 1))
    return retry.retrying(action, pauses, may_pass=is_passing, given_up=given_up)


def is_passing(error: BaseException) -> bool:
    """Whether ``error``, or what caused it, may be gone when tried again."""
    causes = list(_causes(error))
    if any(type(cause).__name__ in _LASTING_NAMES for cause in causes):
        return False
    return any(_is_passing(cause) for cause in causes)


def _is_passing(error: BaseException) -> bool:
    status = _status(error)
    if status is not None:
        return status >= 500 or status in _PASSING_STATUS
    if isinstance(error, ConnectionError | TimeoutError):
        return True
    return any(base.__name__ in _PASSING_NAMES for base in type(error).__mro__)


def _status(error: BaseException) -> int | None:
    """The HTTP status that a library's error carries, if any."""
    response = getattr(error, "response", None)
    status = getattr(error, "status", None) or getattr(response, "status_code", None)
    if isinstance(response, dict):  # botocore's
        status = response.get("ResponseMetadata", {}).get("HTTPStatusCode")
    return status if isinstance(status, int) else None


def _causes(error: BaseException) -> Iterator[BaseException]:
    """``error`` and what it was raised from, each once."""
    seen: set[int] = set()
    current: BaseException | None = error
    while current is not None and id(current) not in seen:
        seen.add(id(current))
        yield current
        current = current.__cause__ or (
            None if current.__suppress_context__ else current.__context__
        )


def _text(error: BaseException) -> str:
    cause = list(_causes(error))[-1]
    return f"{type(cause).__name__}: {cause}" if str(cause) else type(cause).__name__
