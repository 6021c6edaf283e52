"""Times of contenders that take turns, because machines are noisy; and what one allocates.

In: functions without arguments, and the device of their work. Out: medians in seconds, bytes.
"""

import itertools
import statistics
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch


def median_seconds(
    contenders: Mapping[str, Callable[[], Any]],
    repeats: int,
    after: Callable[[str], None] = lambda _: None,
    device: "torch.device | None" = None,
) -> dict[str, float]:
    """Median seconds of each, every round running all of them; the first round is not counted.

    ``after`` is told the name of each that has run; its time is not counted. The work of a GPU
    ``device`` is waited for.
    """
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(repeats + 1):
        for name, run in contenders.items():
            begin = time.perf_counter()
            run()
            _wait_for(device)
            seconds[name].append(time.perf_counter() - begin)
            after(name)
    return {name: statistics.median(values[1:]) for name, values in seconds.items()}


def peak_allocated_bytes(run: Callable[[], Any], device: "torch.device | None" = None) -> int:
    """The most that ``run`` has allocated at any moment, by PyTorch's own account of ``device``.

    That of the CPU, if none is given, is the same on every machine and every time, unlike the
    memory of the process.
    """
    import torch

    if _is_gpu(device):
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        run()
        return torch.cuda.max_memory_allocated(device) - before
    with torch.profiler.profile(
        activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True
    ) as profile:
        run()
    events: Any = profile.profiler.kineto_results.events()
    changes = [(event.start_ns(), event.nbytes()) for event in events if event.name() == "[memory]"]
    in_time = (num_bytes for _, num_bytes in sorted(changes, key=lambda change: change[0]))
    return max(itertools.accumulate(in_time), default=0)


def _wait_for(device: "torch.device | None") -> None:
    if _is_gpu(device):
        import torch

        torch.cuda.synchronize(device)


def _is_gpu(device: "torch.device | None") -> bool:
    return device is not None and device.type == "cuda"
