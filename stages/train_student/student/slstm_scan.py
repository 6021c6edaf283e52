"""The sLSTM recurrence over a sequence, with its own backward through time.

In: gate pre-activations of all positions (biases included) and the recurrent matrices. Out: the
hidden states of all positions and the state after the last. Called by the sLSTM layers of the
student. Pure PyTorch, any device, float32 and float64, O(T) memory.

The package's cell (Beck et al., arXiv 2405.04517, eq. 8-17) keeps c, n and a stabiliser m:
    c' = f·c + i·z,   n' = f·n + i,   y = o·c'/n',   i and f scaled by exp(−m'),
which is a weighted mean. With h = c/n and l = m + log n, the log of the unscaled normaliser,
    l' = logaddexp(l + log σ(f̃), ĩ),   a = exp(l + log σ(f̃) − l'),
    h' = a·h + (1 − a)·z,   y = o·h'
says the same in two states and without a stabiliser: y does not depend on m, so neither do its
gradients. The empty state is l = −∞, which makes a = 0, and so no gradient passes into a state that
a document start has wiped; only the recurrent y needs a mask of its own.

Shapes: T positions, N heads, B batch, H width of a head; gates in the package's order i, f, z, o.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import logsigmoid

_I, _F, _Z, _O = range(4)


class ScanState(NamedTuple):
    """State after a position, each part [N, B, H]: output y, weighted mean h, log-normaliser l."""

    y: Tensor
    h: Tensor
    log_n: Tensor


class Resets(NamedTuple):
    """Where documents begin: the steps at which any does (on the host), and which rows do."""

    steps: Sequence[bool]
    is_start_TB: Tensor


def empty_state(like_NBH: Tensor) -> ScanState:
    """The state before the first position of a document."""
    zeros = torch.zeros_like(like_NBH)
    return ScanState(zeros, zeros, torch.full_like(like_NBH, -math.inf))


def slstm_scan(
    gates_TNBGH: Tensor, recurrent_NHGH: Tensor, state: ScanState | None, resets: Resets | None
) -> tuple[Tensor, ScanState]:
    """Hidden states y [T, N, B, H] and the state after the last position.

    ``gates_TNBGH`` [T, N, B, 4, H] are pre-activations, ``recurrent_NHGH`` [N, H, 4·H] is applied
    to the previous y. Without ``state`` the first position starts afresh. No gradient flows into or
    out of states. Not cast under autocast: pass float32 or float64.
    """
    state = state or empty_state(gates_TNBGH[0, :, :, 0])
    with torch.autocast(gates_TNBGH.device.type, enabled=False):
        y, h, log_n = _Scan.apply(  # type: ignore[no-untyped-call]
            gates_TNBGH, recurrent_NHGH, state, resets
        )
    return y, ScanState(y[-1].detach(), h, log_n)


class _Scan(torch.autograd.Function):
    """The loop. Everything a step reads or writes is a view made before the loop begins."""

    @staticmethod
    def forward(
        ctx: Any, gates: Tensor, recurrent: Tensor, state: ScanState, resets: Resets | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        num_steps, num_heads, batch, _, width = gates.shape
        # Slot i of `acts` ends up holding a, slots z and o their activations, f its pre-activation.
        acts = gates.new_empty(gates.shape)
        y_all = gates.new_empty(num_steps + 1, num_heads, batch, width)
        h_all = torch.empty_like(y_all)
        y_all[0], h_all[0], log_n = state
        matrix = recurrent.contiguous()
        steps = zip(
            gates.flatten(3).unbind(0),
            acts.flatten(3).unbind(0),
            *(acts[:, :, :, slot].unbind(0) for slot in (_I, _F, _Z, _O)),
            *(buffer.unbind(0)[at : at + num_steps] for buffer in (y_all, h_all) for at in (0, 1)),
            strict=True,
        )
        for t, (wx, act, i, f, z, o, y, y_next, h, h_next) in enumerate(steps):
            if resets is not None and resets.steps[t]:
                is_start = resets.is_start_TB[t, :, None]
                y = y.masked_fill(is_start, 0.0)
                log_n = log_n.masked_fill(is_start, -math.inf)
            torch.baddbmm(wx, y, matrix, out=act)
            log_kept = logsigmoid(f).add_(log_n)
            log_n = torch.logaddexp(log_kept, i)
            torch.exp(log_kept.sub_(log_n), out=i)
            torch.tanh(z, out=z)
            torch.sigmoid(o, out=o)
            torch.lerp(z, h, i, out=h_next)
            torch.mul(o, h_next, out=y_next)
        ctx.save_for_backward(recurrent, acts, y_all, h_all)
        ctx.resets = resets
        h_last = h_all[-1].clone()
        ctx.mark_non_differentiable(h_last, log_n)
        return y_all[1:], h_last, log_n

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_y: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        recurrent, acts, y_all, h_all = ctx.saved_tensors
        with torch.autocast(acts.device.type, enabled=False):
            grad_gates = _backward_through_time(grad_y, recurrent, (acts, y_all, h_all), ctx.resets)
            grad_recurrent = None
            if ctx.needs_input_grad[1]:
                y_before = y_all[:-1]
                if ctx.resets is not None:
                    y_before = y_before.masked_fill(ctx.resets.is_start_TB[:, None, :, None], 0.0)
                grad_recurrent = torch.bmm(
                    y_before.permute(1, 3, 0, 2).flatten(2),
                    grad_gates.permute(1, 0, 2, 3, 4).flatten(3).flatten(1, 2),
                )
        return grad_gates, grad_recurrent, None, None


def _backward_through_time(
    grad_y: Tensor, recurrent: Tensor, saved: tuple[Tensor, Tensor, Tensor], resets: Resets | None
) -> Tensor:
    """Gradient by the pre-activations, [T, N, B, 4, H].

    Each slot first holds, for all steps at once, the factor that the loop then multiplies by what
    only the loop knows: the gradient by y (o), by h (z, i) and by l + log σ(f̃) (f).
    """
    acts, y_all, h_all = saved
    kept, f, z, o = acts.unbind(3)
    grad = torch.empty_like(acts)
    torch.mul(h_all[:-1] - z, kept - kept.square(), out=grad[:, :, :, _I])
    torch.sigmoid(-f, out=grad[:, :, :, _F])
    torch.mul(1 - kept, 1 - z.square(), out=grad[:, :, :, _Z])
    torch.mul(y_all[1:], 1 - o, out=grad[:, :, :, _O])

    matrix = recurrent.transpose(1, 2).contiguous()
    grad_h = torch.zeros_like(y_all[0])
    grad_log_n = torch.zeros_like(grad_h)
    grad_next: Tensor | None = None
    steps = zip(
        grad_y.unbind(0),
        kept.unbind(0),
        o.unbind(0),
        grad.flatten(3).unbind(0),
        *(grad[:, :, :, slot].unbind(0) for slot in (_I, _F, _Z, _O)),
        strict=True,
    )
    for t, (dy, a, o_t, all_slots, di, df, dz, do) in reversed(list(enumerate(steps))):
        if grad_next is not None:
            if resets is not None and resets.steps[t + 1]:
                recurrent_dy = torch.bmm(grad_next, matrix)
                dy = dy + recurrent_dy.masked_fill_(resets.is_start_TB[t + 1, :, None], 0.0)
            else:
                dy = torch.baddbmm(dy, grad_next, matrix)
        do.mul_(dy)
        dh = torch.addcmul(grad_h, dy, o_t)
        dz.mul_(dh)
        grad_log_kept = torch.addcmul(torch.mul(a, grad_log_n), dh, di)
        torch.sub(grad_log_n, grad_log_kept, out=di)
        df.mul_(grad_log_kept)
        torch.mul(a, dh, out=grad_h)
        grad_log_n = grad_log_kept
        grad_next = all_slots
    return grad
