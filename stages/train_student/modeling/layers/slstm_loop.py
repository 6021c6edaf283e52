"""The sLSTM recurrence as a loop of PyTorch calls, and its backward through time.

In and out: see ``Loops``. Any device, float32 and float64. Chosen by ``slstm_backend``.

Shapes: T positions, N heads, B batch, G the gates i, f, z, o, H width of a head.
"""

import math

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from stages.train_student.modeling.layers.slstm_autograd import Kept, Loops, Resets, ScanState

_I, _F, _Z, _O = range(4)

# Positions whose part of the gradient is prepared in one go: few enough to stay in a cache.
_POSITIONS_AT_ONCE = 8


def _forward(
    gates: Tensor, recurrent: Tensor, state: ScanState, resets: Resets | None
) -> tuple[Kept, Tensor]:
    """The loop. Everything a step reads or writes is a view made before the loop begins."""
    num_steps, num_heads, batch, _, width = gates.shape
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
    return Kept(acts, y_all, h_all), log_n


def _backward(grad_y: Tensor, recurrent: Tensor, kept: Kept, resets: Resets | None) -> Tensor:
    acts, y_all, h_all = kept
    grad = torch.empty_like(acts)
    matrix = recurrent.transpose(1, 2).contiguous()
    grad_h = torch.zeros_like(y_all[0])
    grad_log_n = torch.zeros_like(grad_h)
    for first in reversed(range(0, len(acts), _POSITIONS_AT_ONCE)):
        some = slice(first, first + _POSITIONS_AT_ONCE)
        _write_factors(acts[some], y_all[1:][some], h_all[:-1][some], grad[some])
        steps = zip(
            range(first, len(acts)),
            grad_y[some].unbind(0),
            *(acts[some, :, :, slot].unbind(0) for slot in (_I, _O)),
            *(grad[some, :, :, slot].unbind(0) for slot in (_I, _F, _Z, _O)),
            strict=False,
        )
        for t, dy, a, o, di, df, dz, do in reversed(list(steps)):
            if t + 1 < len(acts):
                dy = _add_recurrent(dy, grad[t + 1].flatten(2), matrix, resets, t + 1)
            do.mul_(dy)
            dh = torch.addcmul(grad_h, dy, o)
            dz.mul_(dh)
            grad_log_kept = torch.addcmul(torch.mul(a, grad_log_n), dh, di)
            torch.sub(grad_log_n, grad_log_kept, out=di)
            df.mul_(grad_log_kept)
            torch.mul(a, dh, out=grad_h)
            grad_log_n = grad_log_kept
    return grad


def _write_factors(acts: Tensor, y: Tensor, h_before: Tensor, out: Tensor) -> None:
    """Each slot's factor for what only the loop knows: the gradient by y (o), by h (z, i) and by
    l + log σ(f̃) (f).
    """
    a, f, z, o = acts.unbind(3)
    from_new = 1 - a
    torch.sub(h_before, z, out=out[:, :, :, _I]).mul_(a).mul_(from_new)
    torch.sigmoid(-f, out=out[:, :, :, _F])
    torch.addcmul(from_new, from_new * z, z, value=-1, out=out[:, :, :, _Z])
    torch.addcmul(y, y, o, value=-1, out=out[:, :, :, _O])


def _add_recurrent(
    dy: Tensor, grad_next: Tensor, matrix: Tensor, resets: Resets | None, next_step: int
) -> Tensor:
    """Gradient by y with what the next position hands back, unless a document starts there."""
    if resets is None or not resets.steps[next_step]:
        return torch.baddbmm(dy, grad_next, matrix)
    recurrent_dy = torch.bmm(grad_next, matrix)
    return dy + recurrent_dy.masked_fill_(resets.is_start_TB[next_step, :, None], 0.0)


PYTORCH = Loops(_forward, _backward)
