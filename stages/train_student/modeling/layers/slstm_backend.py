"""Which implementation of the sLSTM recurrence runs on a device, and a sentence about it.

In: the recipe's mode, a device and a head's size. Out: the scan, and what to tell the user. Called
by the trainer, to say it, and by ``slstm_scan`` on a device nobody asked about.

``auto`` is the PyTorch loop on a CPU. On a GPU it is the Triton kernels, if Triton is there and
they pass a check on that very GPU: a loop of PyTorch calls waits for their launches most of the
time. Two other ways were left out:

- The package's own CUDA kernels (xlstm 2.0.6, ``blocks/slstm/src/cuda``) take a state before the
  first position and nothing else: ``sLSTMFunc.forward(training, x, s0, recurrent_kernel, bias)``
  has no place for a document start, and its cell takes ``lengths`` but never reads it. Documents
  packed into a row would leak into one another. They are also compiled by nvcc at run time.
- A CUDA graph of the PyTorch loop would spare the launches' cost on the host, not that of some ten
  kernels a position, which wait for one another. It is bound to one batch size and length, must
  wipe states at every position since graphs cannot branch on where documents begin, and needs its
  tensors at fixed addresses, forward and backward, for every layer. It would only help where
  Triton is missing, and PyTorch's GPU builds for Linux bring Triton along.
"""

import importlib
import math
from collections.abc import Callable
from functools import cache
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from stages.train_student.modeling.layers.slstm_autograd import Loops, Resets, ScanState, scan_with
from stages.train_student.modeling.layers.slstm_loop import PYTORCH

Mode = Literal["auto", "torch", "triton"]
Scan = Callable[[Tensor, Tensor, ScanState | None, Resets | None], tuple[Tensor, ScanState]]

# Of the largest value. 16 heads of width 96 differ by 4e-7 in float32, by 5e-4 with TF32 products.
_TOLERANCE = 1e-4


class ScanChoice(NamedTuple):
    """``scan`` is called like ``slstm_scan``; ``sentence`` says what it is and why."""

    scan: Scan
    sentence: str


_chosen: dict[tuple[torch.device, int, int], ScanChoice] = {}


def choose_scan(mode: Mode, device: torch.device, num_heads: int, head_width: int) -> ScanChoice:
    """Choose, and remember it for ``slstm_scan``. Raises ValueError if ``triton`` cannot be."""
    if device.type == "cuda" and device.index is None:
        device = torch.device("cuda", torch.cuda.current_device())
    choice = _choose(mode, device, num_heads, head_width)
    _chosen[device, num_heads, head_width] = choice
    return choice


def chosen_scan(device: torch.device, num_heads: int, head_width: int) -> Scan:
    """What was chosen for heads of this size, or else ``auto``."""
    choice = _chosen.get((device, num_heads, head_width))
    return (choice or choose_scan("auto", device, num_heads, head_width)).scan


def _choose(mode: Mode, device: torch.device, num_heads: int, head_width: int) -> ScanChoice:
    loop, kernels = f"sLSTM scan: PyTorch loop on {device}", f"sLSTM scan: Triton on {device}"
    if mode == "torch" or (mode == "auto" and device.type != "cuda"):
        return ScanChoice(_scan_by(PYTORCH), loop)
    if device.type != "cuda":
        raise ValueError(
            f"slstm_backend=triton runs on GPUs only, and this is {device}; set slstm_backend=auto"
        )
    found = _checked_triton(device, num_heads, head_width)
    if isinstance(found, Loops):
        return ScanChoice(_scan_by(found), f"{kernels}, found equal to the PyTorch loop")
    if mode == "triton":
        raise ValueError(
            f"slstm_backend=triton cannot run on {device}: {found}; slstm_backend=auto does without"
        )
    return ScanChoice(_scan_by(PYTORCH), f"{loop}, since {found}")


@cache
def _checked_triton(device: torch.device, num_heads: int, head_width: int) -> Loops | str:
    """The Triton kernels, or why not."""
    try:
        triton_loops: Loops = importlib.import_module(f"{__package__}.slstm_triton").TRITON
    except ImportError as error:
        return f"Triton cannot be imported ({_first_line(error)})"
    try:
        difference = difference_from_loop(triton_loops, device, num_heads, head_width)
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # compilers and drivers fail in many ways
        return f"Triton's kernels failed ({_first_line(error)})"
    if difference <= _TOLERANCE:  # not so if it is NaN
        return triton_loops
    return f"Triton's kernels are {difference:.1e} of the largest value off the PyTorch loop"


# Neither a caller's no_grad nor its inference_mode reaches the check.
@torch.inference_mode(False)
def difference_from_loop(
    loops: Loops, device: torch.device, num_heads: int, head_width: int
) -> float:
    """The largest difference from the PyTorch loop in float64, relative to the largest value.

    Over outputs, last state and gradients of a small random problem that goes on from a state, with
    and without document starts. NaN counts as infinite.
    """
    num_positions, batch = 12, 5
    generator = torch.Generator("cpu").manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, device="cpu", dtype=torch.float64)

    problem = (
        normal(num_positions, num_heads, batch, 4, head_width),
        normal(num_heads, head_width, 4 * head_width) / math.sqrt(head_width),
        normal(num_positions, num_heads, batch, head_width),
    )
    is_start = normal(num_positions, batch) > 0.5
    resets = Resets(is_start.any(1).tolist(), is_start.to(device))
    worst = 0.0
    for some in (None, resets):
        pairs = zip(
            _results(loops, [part.to(device, torch.float32) for part in problem], some),
            _results(PYTORCH, [part.to(device) for part in problem], some),
            strict=True,
        )
        for found, expected in pairs:
            difference = (found.double() - expected).abs().max() / expected.abs().max()
            worst = max(worst, difference.nan_to_num(math.inf).item())
    return worst


def _results(loops: Loops, problem: list[Tensor], resets: Resets | None) -> tuple[Tensor, ...]:
    gates, recurrent, weights = problem
    inputs = (gates.detach().requires_grad_(), recurrent.detach().requires_grad_())
    state = ScanState(weights[0].tanh(), weights[1].tanh(), weights[2])
    y, last = scan_with(loops, *inputs, state, resets)
    return (y.detach(), *last, *torch.autograd.grad((y * weights).sum(), inputs))


def _scan_by(loops: Loops) -> Scan:
    def scan(
        gates_TNBGH: Tensor, recurrent_NHGH: Tensor, state: ScanState | None, resets: Resets | None
    ) -> tuple[Tensor, ScanState]:
        fitting = loops if gates_TNBGH.dtype == torch.float32 else PYTORCH
        return scan_with(fitting, gates_TNBGH, recurrent_NHGH, state, resets)

    return scan


def _first_line(error: Exception) -> str:
    return next((line for line in str(error).splitlines() if line), type(error).__name__)
