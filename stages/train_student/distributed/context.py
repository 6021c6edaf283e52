"""The processes of a run, as torchrun starts them: which one this is, and what they agree on.

In: torchrun's environment. Out: ``DistributedContext`` and this process's device. One
process without torchrun is a context of one, and nothing of PyTorch's is set up.

What is agreed on goes over the processors (gloo), so that no GPU is waited for.
"""

import os
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

import torch
import torch.distributed as dist

from stages.compute.device import choose_device

_Value = TypeVar("_Value")


class OtherProcessFailedError(RuntimeError):
    """Another process of the context failed, and has said so."""


@dataclass(frozen=True)
class DistributedContext:
    """A context, and this process's place in it."""

    rank: int = 0
    num_ranks: int = 1

    @property
    def is_rank0(self) -> bool:
        """The first process alone writes files and speaks."""
        return self.rank == 0

    def sum(self, numbers: Sequence[float]) -> list[float]:
        """The sum over all processes, number by number, in float64.

        Raises OtherProcessFailedError where one of them is gone.
        """
        if self.num_ranks == 1:
            return list(numbers)
        total = torch.tensor(numbers, dtype=torch.float64)
        with _told_of_others():
            dist.all_reduce(total)
        return total.tolist()

    def run_on_rank0(self, action: Callable[[], _Value]) -> _Value:
        """What ``action`` gives the first process, which alone calls it.

        Where it raises, all processes raise: the others ``OtherProcessFailedError``.
        """
        if self.num_ranks == 1:
            return action()
        outcome: list[tuple[_Value | None, str | None]] = [(None, None)]
        failure: BaseException | None = None
        if self.is_rank0:
            try:
                outcome = [(action(), None)]
            except Exception as error:
                failure, outcome = error, [(None, f"{type(error).__name__}: {error}")]
        with _told_of_others():
            dist.broadcast_object_list(outcome, src=0, device=torch.device("cpu"))
        value, message = outcome[0]
        if failure is not None:
            raise failure
        if message is not None:
            raise OtherProcessFailedError(message)
        return value  # type: ignore[return-value]


@contextmanager
def distributed_context(device_name: str) -> Iterator[tuple[DistributedContext, torch.device]]:
    """This process's place among those that torchrun started, and its device.

    Each process of a machine has the GPU of its number there. Raises ValueError if there is none
    such, or if one GPU is named for all.
    """
    num_ranks = int(os.environ.get("WORLD_SIZE", "1"))
    device = choose_device(device_name)
    if num_ranks > 1:
        device = _device_of(device_name, int(os.environ.get("LOCAL_RANK", "0")))
    if device.type == "cuda":
        torch.cuda.set_device(device)
    if num_ranks == 1:
        yield DistributedContext(), device
        return
    dist.init_process_group("cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo")
    yield DistributedContext(dist.get_rank(), num_ranks), device
    # Not after a failure: what it has to wait for may never come, and the process ends anyway.
    dist.destroy_process_group()


@contextmanager
def _told_of_others() -> Iterator[None]:
    """Raise OtherProcessFailedError where a process can no longer be reached."""
    try:
        yield
    except RuntimeError as error:
        if not re.search(r"clos|reset|refused|EOF", str(error), re.IGNORECASE):
            raise
        raise OtherProcessFailedError("another process of the run has ended") from error


def _device_of(name: str, local_rank: int) -> torch.device:
    device = choose_device(name)
    if device.type != "cuda":
        return device
    if name not in ("auto", "cuda"):
        raise ValueError(
            f"train_student.device: {name!r} names one GPU for all processes. Use auto: each "
            "process takes its own."
        )
    return choose_device(f"cuda:{local_rank}")
