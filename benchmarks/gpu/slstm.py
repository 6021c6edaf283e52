"""The sLSTM's recurrence: Triton's kernels beside the PyTorch loop, and beside the roofline.

In: a head's size, and how much of it. Out: milliseconds forward and backward, and the least that
they could take: for reading and writing their tensors once at the speed at which this device copies
a large one, and for their products at the speed at which it multiplies large ones in float32. The
recurrence is bound by neither but by its steps, one after another: hence the time of one step.
"""

import statistics
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import click

from benchmarks.quick import quick_option, show

if TYPE_CHECKING:
    import torch

    from stages.train_student.modeling.layers.slstm_autograd import Loops, Resets

_COPIED_BYTES, _MULTIPLIED = {"cuda": 1 << 30, "cpu": 1 << 24}, {"cuda": 8192, "cpu": 256}


@click.command("slstm", help=__doc__)
@quick_option(heads=4, batch=4, positions=128, repeats=2, device="auto")
@click.option("--heads", type=int, default=16, show_default=True)
@click.option("--width", type=int, default=96, show_default=True, help="Of a head.")
@click.option("--batch", type=int, default=8, show_default=True)
@click.option("--positions", type=int, default=512, show_default=True)
@click.option("--device", default="cuda", show_default=True)
@click.option("--repeats", type=int, default=5, show_default=True)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def slstm(as_json: bool, **options: Any) -> None:
    show(measure(**options), as_json)


def measure(
    heads: int, width: int, batch: int, positions: int, device: str, repeats: int
) -> dict[str, Any]:
    """All figures; without a GPU the loop's alone."""
    import torch

    from stages.compute.device import choose_device
    from stages.train_student.modeling.layers.slstm_autograd import Resets
    from stages.train_student.modeling.layers.slstm_loop import PYTORCH

    place = choose_device(device)
    contenders = {"loop": PYTORCH}
    if place.type == "cuda":
        from stages.train_student.modeling.layers.slstm_triton import TRITON

        contenders = {"kernels": TRITON, **contenders}
    gates = torch.randn(positions, heads, batch, 4, width, device=place)
    recurrent = torch.randn(heads, width, 4 * width, device=place) / width**0.5
    is_start = torch.zeros(positions, batch, dtype=torch.bool)
    is_start[positions // 2] = True
    resets = Resets(is_start.any(1).tolist(), is_start.to(place))
    figures: dict[str, Any] = {
        "heads": heads,
        "head_width": width,
        "batch": batch,
        "positions": positions,
    }
    for name, loops in contenders.items():
        forward, both = (
            _milliseconds(_pass(loops, gates, recurrent, resets, backward), place, repeats)
            for backward in (False, True)
        )
        figures[f"{name}_forward_ms"] = round(forward, 3)
        figures[f"{name}_forward_backward_ms"] = round(both, 3)
        figures[f"{name}_step_us"] = round(1e3 * both / positions / 2, 2)
        figures[f"{name}_tokens_per_s"] = round(1e3 * batch * positions / both)
    if "kernels" in contenders:
        ratio = figures["loop_forward_backward_ms"] / figures["kernels_forward_backward_ms"]
        figures["speedup_over_loop"] = round(ratio, 1)
    bound_ms = _least_milliseconds(gates, recurrent, place, repeats)
    own = figures[f"{next(iter(contenders))}_forward_backward_ms"]
    return {
        **figures,
        **{f"least_ms_by_{name}": round(value, 4) for name, value in bound_ms.items()},
        "share_of_roofline": round(max(bound_ms.values()) / own, 4),
    }


def _pass(
    loops: "Loops",
    gates: "torch.Tensor",
    recurrent: "torch.Tensor",
    resets: "Resets",
    backward: bool,
) -> Callable[[], object]:
    import torch

    from stages.train_student.modeling.layers.slstm_autograd import scan_with

    leaves = [part.clone().requires_grad_() for part in (gates, recurrent)]
    ones = torch.ones_like(gates[:, :, :, 0])

    def run() -> object:
        if not backward:
            with torch.no_grad():
                return scan_with(loops, leaves[0], leaves[1], None, resets)
        y, _ = scan_with(loops, leaves[0], leaves[1], None, resets)
        return torch.autograd.grad(y, leaves, ones)

    return run


def _least_milliseconds(
    gates: "torch.Tensor", recurrent: "torch.Tensor", device: "torch.device", repeats: int
) -> dict[str, float]:
    """Of forward and backward: for their bytes, and for their products."""
    import torch

    num = gates.numel()
    # Forward: gates read; activations (as many), y and h (a quarter each) written. Backward: those
    # and the gradient by y read, the gradient by the gates written, and read for the matrices'.
    num_bytes = gates.element_size() * (num * (1 + 1.5) + num * (1.5 + 0.25 + 1 + 1 + 0.25))
    # Of every position and row, H×4H multiplied and added: forward, backward, and for the matrices.
    operations = 3 * 2 * num / 4 * recurrent.shape[1] * 4
    source = torch.empty(_COPIED_BYTES[device.type], dtype=torch.uint8, device=device)
    target, size = torch.empty_like(source), _MULTIPLIED[device.type]
    factor = torch.randn(size, size, device=device)
    copy_ms = _milliseconds(lambda: target.copy_(source), device, repeats)
    product_ms = _milliseconds(lambda: factor @ factor, device, repeats)
    return {
        "bytes": copy_ms * num_bytes / (2 * len(source)),
        "products": product_ms * operations / (2 * size**3),
    }


def _milliseconds(work: Callable[[], object], device: "torch.device", repeats: int) -> float:
    """Median, after one call that is not counted."""
    import torch

    seconds = []
    for _ in range(repeats + 1):
        begin = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        seconds.append(time.perf_counter() - begin)
    return 1e3 * statistics.median(seconds[1:])
