"""One autograd function for every implementation of the sLSTM recurrence.

In: gate pre-activations, recurrent matrices, a state, document starts, and the two loops over
positions that do the work. Out: hidden states and the last state, differentiable by gates and
matrices.

All loops keep the same tensors for the backward pass, so any forward goes with any backward. They
are O(T): the activations of four gates, y and h of every position.

Shapes: T positions, N heads, B batch, G the gates i, f, z, o, H width of a head.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

# Positions whose share of the recurrent matrices' gradient is summed in one product: long enough
# for the product to be worth its call, short enough for its copies to be small.
_POSITIONS_PER_PRODUCT = 32


class ScanState(NamedTuple):
    """State after a position, each part [N, B, H]: output y, weighted mean h, log-normaliser l."""

    y: Tensor
    h: Tensor
    log_n: Tensor


class Resets(NamedTuple):
    """Where documents begin: the steps at which any does (on the host), and which rows do."""

    steps: Sequence[bool]
    is_start_TB: Tensor


class Kept(NamedTuple):
    """What the backward pass needs.

    ``acts_TNBGH``: slot i holds a, f its pre-activation, z and o their activations. ``y`` and ``h``
    [T + 1, N, B, H] begin with the state before the first position.
    """

    acts_TNBGH: Tensor
    y: Tensor
    h: Tensor


class Loops(NamedTuple):
    """An implementation.

    ``forward`` maps gates, recurrent matrices [N, H, 4·H], state and resets to what is kept and the
    last log-normaliser. ``backward`` maps the gradient by y, the matrices, what was kept and the
    resets to the gradient by the gates, and writes to none of them.
    """

    forward: Callable[[Tensor, Tensor, ScanState, Resets | None], tuple[Kept, Tensor]]
    backward: Callable[[Tensor, Tensor, Kept, Resets | None], Tensor]


def empty_state(like_NBH: Tensor) -> ScanState:
    """The state before the first position of a document."""
    zeros = torch.zeros_like(like_NBH)
    return ScanState(zeros, zeros, torch.full_like(like_NBH, -math.inf))


def scan_with(
    loops: Loops,
    gates_TNBGH: Tensor,
    recurrent_NHGH: Tensor,
    state: ScanState | None,
    resets: Resets | None,
) -> tuple[Tensor, ScanState]:
    """``slstm_scan`` by these loops."""
    state = state or empty_state(gates_TNBGH[0, :, :, 0])
    with torch.autocast(gates_TNBGH.device.type, enabled=False):
        y, h, log_n = _Scan.apply(  # type: ignore[no-untyped-call]
            gates_TNBGH, recurrent_NHGH, state, resets, loops
        )
    return y, ScanState(y[-1].detach(), h, log_n)


class _Scan(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        gates: Tensor,
        recurrent: Tensor,
        state: ScanState,
        resets: Resets | None,
        loops: Loops,
    ) -> tuple[Tensor, Tensor, Tensor]:
        kept, log_n = loops.forward(gates, recurrent, state, resets)
        ctx.save_for_backward(recurrent, *kept)
        ctx.resets, ctx.loops = resets, loops
        h_last = kept.h[-1].clone()
        ctx.mark_non_differentiable(h_last, log_n)
        return kept.y[1:], h_last, log_n

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_y: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        recurrent, *saved = ctx.saved_tensors
        kept = Kept(*saved)
        with torch.autocast(recurrent.device.type, enabled=False):
            grad_gates = ctx.loops.backward(grad_y, recurrent, kept, ctx.resets)
            grad_recurrent = None
            if ctx.needs_input_grad[1]:
                grad_recurrent = _recurrent_gradient(kept.y[:-1], grad_gates, ctx.resets)
        return grad_gates, grad_recurrent, None, None, None


def _recurrent_gradient(
    y_before_TNBH: Tensor, grad_gates_TNBGH: Tensor, resets: Resets | None
) -> Tensor:
    """Σ over positions and rows of yᵀ·(gradient by the pre-activations), [N, H, 4·H]."""
    _, num_heads, _, num_gates, width = grad_gates_TNBGH.shape
    total = y_before_TNBH.new_zeros(num_heads, width, num_gates * width)
    for first in range(0, len(y_before_TNBH), _POSITIONS_PER_PRODUCT):
        some = slice(first, first + _POSITIONS_PER_PRODUCT)
        y = y_before_TNBH[some]
        if resets is not None:
            y = y.masked_fill(resets.is_start_TB[some, None, :, None], 0.0)
        total.baddbmm_(
            y.permute(1, 3, 0, 2).flatten(2),
            grad_gates_TNBGH[some].flatten(3).transpose(0, 1).flatten(1, 2),
        )
    return total
