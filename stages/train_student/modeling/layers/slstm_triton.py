"""The sLSTM recurrence by Triton kernels: lays tensors out for them and launches them.

In and out: see ``Loops``; float32, on a GPU. Chosen by ``slstm_backend``, which imports this only
where Triton is wanted.
"""

from typing import NamedTuple

import torch
import triton
from torch import Tensor

from stages.train_student.modeling.layers.slstm_autograd import Kept, Loops, Resets, ScanState
from stages.train_student.modeling.layers.slstm_triton_kernels import (
    slstm_backward_kernel,
    slstm_forward_kernel,
)

# Rows share one reading of the matrix. A multiprocessor multiplies about four numbers in the time
# in which its L1 cache delivers one.
_MAX_ROWS = 4
# Fours of the summed dimension that are loaded before the first is used.
_FORWARD_UNROLLED, _BACKWARD_UNROLLED = 4, 8


class LaunchSettings(NamedTuple):
    """The grid that either kernel is started on, and the sizes it is compiled for."""

    grid: tuple[int, int]
    sizes: dict[str, int]


def launch_settings(num_heads: int, batch: int, width: int) -> LaunchSettings:
    """One program for every few rows of a head, and one thread for four columns of its matrix."""
    rows = min(_MAX_ROWS, triton.next_power_of_2(batch))
    lanes = max(16, triton.next_power_of_2(width))
    sizes = {
        "width": width,
        "rows": rows,
        "lanes": lanes,
        "num_warps": min(8, max(1, lanes // 32)),
        # Loads must stay behind the barrier that they wait for.
        "num_stages": 1,
        "enable_fp_fusion": True,
    }
    return LaunchSettings((num_heads, triton.cdiv(batch, rows)), sizes)


def _forward(
    gates: Tensor, recurrent: Tensor, state: ScanState, resets: Resets | None
) -> tuple[Kept, Tensor]:
    num_steps, num_heads, batch, num_gates, width = gates.shape
    acts = gates.new_empty(gates.shape)
    y = gates.new_empty(num_steps + 1, num_heads, batch, width)
    h = torch.empty_like(y)
    log_n = gates.new_empty(y.shape[1:])
    for buffer, part in zip((y[0], h[0], log_n), state, strict=True):
        buffer.copy_(part)
    matrix = recurrent.reshape(num_heads, width, num_gates, width).transpose(2, 3).contiguous()
    launch = launch_settings(num_heads, batch, width)
    # Kernels are launched on the GPU that is current in this thread.
    with torch.cuda.device_of(gates):  # type: ignore[no-untyped-call]
        slstm_forward_kernel[launch.grid](
            gates.contiguous(),
            matrix,
            _is_start(resets, acts),
            log_n,
            acts,
            y,
            h,
            num_steps,
            batch,
            unrolled=_FORWARD_UNROLLED,
            has_resets=resets is not None,
            **launch.sizes,
        )
    return Kept(acts, y, h), log_n


def _backward(grad_y: Tensor, recurrent: Tensor, kept: Kept, resets: Resets | None) -> Tensor:
    num_steps, num_heads, batch, _, width = kept.acts_TNBGH.shape
    grad = torch.empty_like(kept.acts_TNBGH)
    is_start_TB = _is_start(resets, grad)
    launch = launch_settings(num_heads, batch, width)
    with torch.cuda.device_of(grad):  # type: ignore[no-untyped-call]
        slstm_backward_kernel[launch.grid](
            grad_y.contiguous()[-1],
            recurrent.reshape(num_heads, width, width, 4).transpose(1, 2).contiguous(),
            is_start_TB[-1],
            kept.acts_TNBGH[-1],
            kept.h[-2],
            kept.h[-1],
            grad[-1],
            num_steps,
            batch,
            unrolled=_BACKWARD_UNROLLED,
            has_resets=resets is not None,
            **launch.sizes,
        )
    return grad


def _is_start(resets: Resets | None, like: Tensor) -> Tensor:
    """Document starts [T, B] as bytes on the device; without resets something that is not read."""
    if resets is None:
        return like
    return resets.is_start_TB.to(device=like.device, dtype=torch.uint8).contiguous()


TRITON = Loops(_forward, _backward)
