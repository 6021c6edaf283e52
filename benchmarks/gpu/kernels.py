"""Where the time of a training step goes: the kernels that take the most, by PyTorch's profiler.

In: the cache that `stage-two --work` made. Out: milliseconds of a step, the share of it in which
the device was busy, and the kernels (of a CPU, the operations) with the most time in a step, in
milliseconds, and how often they run in it. The profiler itself takes time, of the host above all.
"""

import json
import time
from pathlib import Path
from typing import Any

import click
import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks.stage_one import PRESETS
from benchmarks.stage_two import Setup, make_cache, opened
from benchmarks.trainings import WAYS, Training, Way

_LONGEST_NAME = 80


@click.command("kernels", help=__doc__)
@click.option("--teacher", "preset", type=click.Choice(sorted(PRESETS)), required=True)
@click.option("--inputs", type=click.Path(file_okay=False, path_type=Path), required=True)
@click.option("--work", type=click.Path(file_okay=False, path_type=Path), required=True)
@click.option("--way", type=click.Choice(WAYS), default="cache", show_default=True)
@click.option("--blocks", type=int, default=6, show_default=True)
@click.option("--heads", type=int, default=16, show_default=True)
@click.option("--precision", default="fp16", show_default=True)
@click.option("--device", default="cuda", show_default=True)
@click.option("--batch-size", type=int, default=8, show_default=True)
@click.option("--gradient-accumulation-steps", type=int, default=4, show_default=True)
@click.option("--chunk", type=int, default=256, show_default=True)
@click.option("--sequence-length", type=int, default=512, show_default=True)
@click.option("--compile", default="auto", show_default=True)
@click.option("--sampled-softmax-size", type=int)
@click.option("--steps", type=int, default=2, show_default=True, help="That are profiled.")
@click.option("--num", type=int, default=20, show_default=True, help="Of kernels.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def kernels(
    inputs: Path, work: Path, way: Way, steps: int, num: int, as_json: bool, **options: Any
) -> None:
    setup = Setup(**options)
    make_cache(work, setup, inputs)
    cache, config, device = opened(work, setup)
    figures = longest_kernels(Training(way, cache, config, device), steps, num)
    click.echo(json.dumps(figures) if as_json else json.dumps(figures, indent=2))


def longest_kernels(training: Training, steps: int, num: int) -> dict[str, Any]:
    """Of ``steps`` steps, after two that compile what is compiled."""
    is_gpu = training.device.type == "cuda"
    training.run(2)
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if is_gpu else [])]
    begin = time.perf_counter()
    with profile(activities=activities) as profiled:
        training.run(steps)
        if is_gpu:
            torch.cuda.synchronize(training.device)
        milliseconds = 1e3 * (time.perf_counter() - begin) / steps
    own = "self_device_time_total" if is_gpu else "self_cpu_time_total"
    # Of a GPU's events, those of the host carry the time of what they launched, too.
    events = [
        event for event in profiled.key_averages() if not is_gpu or event.device_type.name == "CUDA"
    ]
    events.sort(key=lambda event: getattr(event, own), reverse=True)
    busy = sum(getattr(event, own) for event in events) / 1e3 / steps
    return {
        "way": training.way,
        "step_ms": round(milliseconds, 2),
        "device_busy_share": round(busy / milliseconds, 4),
        "kernels": [
            {
                "name": event.key[:_LONGEST_NAME],
                "ms": round(getattr(event, own) / 1e3 / steps, 3),
                "calls": round(event.count / steps, 1),
            }
            for event in events[:num]
        ],
    }
