"""How a run is stopped: by a question that it asks, and by an exception where waiting is long.

A step changes the run's state only in its last moments, when the optimizer takes it. Whatever comes
before (waiting for rows, forward and backward passes, compiling, validation) can be abandoned at
any point, and the run is still at the step that it has finished.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import TypeVar

from stages.train_student.distributed.context import DistributedContext

_Item = TypeVar("_Item")


class StopNow(BaseException):
    """Abandons what a run is at. No Exception: compilers and loaders catch those."""


class StoppedError(Exception):
    """The run was asked to stop, and has left a checkpoint of ``step``."""

    def __init__(self, step: int) -> None:
        super().__init__(f"stopped after step {step}, which was saved as a checkpoint")
        self.step = step


def _never() -> bool:
    return False


@dataclass(frozen=True, kw_only=True)
class StopRequest:
    """Whether a run is to stop."""

    is_made: Callable[[], bool] = _never
    """Asked between steps, micro-batches and batches of validation."""
    interruptible: Callable[[], AbstractContextManager[None]] = nullcontext
    """A block in which a request may also raise StopNow, at any moment. Of several processes
    none is interrupted: what the others wait for would never come."""


class Stopping:
    """What a run's processes do about a request."""

    def __init__(self, request: StopRequest, context: DistributedContext) -> None:
        self._request, self._context = request, context
        self._is_alone = context.num_ranks == 1

    @property
    def is_asked(self) -> bool:
        """Whether this process was asked to stop."""
        return self._request.is_made()

    def check(self) -> None:
        """Raise StopNow where any process was asked to stop. All of them have to call it."""
        if self._context.sum([self.is_asked])[0]:
            raise StopNow

    def check_alone(self) -> None:
        """``check`` where not all processes come by: it does nothing where there are several."""
        if self._is_alone:
            self.check()

    def checked(self, items: Iterable[_Item]) -> Iterator[_Item]:
        """``items``, with a ``check`` before each. All processes need equally many."""
        for item in items:
            self.check()
            yield item

    def interruptible(self) -> AbstractContextManager[None]:
        """A block that may be abandoned at any moment."""
        return self._request.interruptible() if self._is_alone else nullcontext()
