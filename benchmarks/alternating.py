"""Times of contenders that take turns, because machines are noisy; and what one allocates.

In: functions without arguments. Out: medians in seconds, bytes.
"""

import itertools
import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any


def median_seconds(
    contenders: Mapping[str, Callable[[], Any]],
    repeats: int,
    after: Callable[[str], None] = lambda _: None,
) -> dict[str, float]:
    """Median seconds of each, every round running all of them; the first round is not counted.

    ``after`` is told the name of each that has run; its time is not counted.
    """
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(repeats + 1):
        for name, run in contenders.items():
            begin = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - begin)
            after(name)
    return {name: statistics.median(values[1:]) for name, values in seconds.items()}


def peak_allocated_bytes(run: Callable[[], Any]) -> int:
    """The most that ``run`` has allocated at any moment, by PyTorch's own account of the CPU.

    Unlike the process's memory that is the same on every machine, and the same every time.
    """
    import torch

    with torch.profiler.profile(
        activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True
    ) as profile:
        run()
    events: Any = profile.profiler.kineto_results.events()
    changes = [(event.start_ns(), event.nbytes()) for event in events if event.name() == "[memory]"]
    in_time = (num_bytes for _, num_bytes in sorted(changes, key=lambda change: change[0]))
    return max(itertools.accumulate(in_time), default=0)
