"""How fast a run is, and how much of the device it uses.

In: when steps began and ended, and the operations of a token. Out: tokens a second, the share of
time spent waiting for the loader, MFU where the device's peak is known, and peak memory.
"""

import resource
import sys
import time
from pathlib import Path

import torch

from stages.compute.peak_flops import peak_operations
from stages.train_student.losses.objective import PRECISIONS

_STATUS = Path("/proc/self/status")


class Throughput:
    """Times steps; ``restart`` resets the timer where something else took the time."""

    def __init__(
        self, operations_per_token: float, device: torch.device, precision: str, num_devices: int
    ) -> None:
        self._operations, self._device = operations_per_token, device
        peak = None
        if device.type == "cuda":
            peak = peak_operations(
                torch.cuda.get_device_name(device),
                str(PRECISIONS[precision]).removeprefix("torch."),
            )
            torch.cuda.reset_peak_memory_stats(device)
        self._peak = None if peak is None else peak * num_devices
        self.restart()

    def restart(self) -> None:
        """From now on counts the next step."""
        self._begin = self._loaded = time.monotonic()

    def loaded(self) -> None:
        """The step's batch is there."""
        self._loaded = time.monotonic()

    def figures(self, num_tokens: int) -> dict[str, float]:
        """Of the step that ends now, over all processes, and begin the next."""
        end = time.monotonic()
        seconds, waited = max(end - self._begin, 1e-9), self._loaded - self._begin
        speed = num_tokens / seconds
        self.restart()
        found = {
            "speed/tokens_per_second": speed,
            "speed/loader_wait_share": waited / seconds,
            "speed/peak_bytes": float(peak_bytes(self._device)),
        }
        if self._peak is not None:
            found["speed/mfu"] = speed * self._operations / self._peak
        return found


def peak_bytes(device: torch.device) -> int:
    """The most memory this process has had: the device's, or without a GPU its resident set."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    if _STATUS.exists():  # getrusage begins with what the process that started this one had
        return int(_STATUS.read_text("ascii").partition("VmHWM:")[2].split()[0]) * 1024
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
