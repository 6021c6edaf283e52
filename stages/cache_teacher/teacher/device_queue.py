"""Asynchronous transfers to and from a device, and the time that the device was busy.

On a GPU, copies go through pinned memory and are queued behind the work that makes what they copy:
the host goes on, and waits for a ``DeviceClock`` before it looks. On a CPU there is nothing to wait
for.
"""

import time
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor


def to_device(values: npt.NDArray[Any], device: torch.device) -> Tensor:
    """``values`` on ``device``, once it gets there."""
    tensor = torch.from_numpy(np.ascontiguousarray(values))
    if device.type == "cuda":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor


def to_host(tensor: Tensor) -> Tensor:
    """``tensor`` in the host's memory, whole once the clock has been waited for."""
    if tensor.device.type != "cuda":
        return tensor
    pinned = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
    return pinned.copy_(tensor, non_blocking=True)


class DeviceClock:
    """Runs from where it is made to ``stop``, in the device's own time.

    It starts when the device comes to the mark: after what was queued before, or at once if that is
    nothing. Where the device then waits for the host to queue the rest, it runs on.
    """

    def __init__(self, device: torch.device) -> None:
        self.is_gpu = device.type == "cuda"
        self._events: list[torch.cuda.Event] = []
        self._seconds: list[float] = []
        self._mark()

    def stop(self) -> None:
        """Mark the end of what has been queued."""
        self._mark()

    def wait(self) -> None:
        """Wait until the device is there."""
        if self.is_gpu:
            self._events[1].synchronize()

    def seconds(self) -> float:
        """What lies between both marks; known once it was waited for."""
        if self.is_gpu:
            milliseconds: float = self._events[0].elapsed_time(self._events[1])
            return milliseconds / 1000
        return self._seconds[1] - self._seconds[0]

    def _mark(self) -> None:
        if self.is_gpu:
            event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
            event.record()
            self._events.append(event)
        else:
            self._seconds.append(time.perf_counter())
