"""Weighted averages of values, chunk by chunk, for groups of queries that share keys and values.

In: features of queries and keys, values and log-weights, cut into chunks. Out: an average for every
query and the sums after the last chunk. The scheme is that of ``mlstm_chunkwise``; what differs:
the divisor is the normaliser itself and nothing else, so that the common factor exp(−M_t) of a row
cancels and M is a constant; the rows of a chunk are the G queries of each of its positions; and
weights within a chunk are computed again in the backward instead of kept.

Shapes: C chunks, B batch, N heads, L positions of a chunk, G queries that share a head, R = L·G
rows (the queries of one position lie side by side), F features, H width of a head.
"""

import math
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from stages.train_student.modeling.layers.mlstm_chunkwise import (
    Passing,
    Sums,
    add_passed,
    states_between_chunks,
    weighed,
)


class ChunkwiseAverages(torch.autograd.Function):
    """h_t = Σ_s w_ts v_s / Σ_s w_ts, with w_ts = exp(g_s − M_t) φ(q_t)·φ(k_s).

    Arguments: φ(q) [C, B, N, R, F], φ(k) [C, B, N, L, F], v [C, B, N, L, H]; g and M [C, B, N, L],
    at least float32, which is the precision of every sum; ``is_hidden`` [1 or C, 1 or B, 1, L, L];
    and what passes between chunks, ``seen`` of it by row. Returns h [C, B, N, R, H] and the sums
    after the last chunk (empty without a state before the first). h is 0, with no gradient, where
    all weights underflow.
    """

    @staticmethod
    def forward(
        ctx: Any,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        score: Tensor,
        largest: Tensor,
        is_hidden: Tensor,
        passing: Passing,
    ) -> tuple[Tensor, Tensor, Tensor]:
        weights = _times((q @ k.mT).to(score.dtype), _decay(score, largest, is_hidden))
        normaliser = weights.sum(-1)
        values = (weights.to(q.dtype) @ v).to(score.dtype)
        del weights  # large

        before, after = states_between_chunks(k, v, passing)
        if before is not None:
            seen_q = weighed(q, passing.seen_CBNL)[passing.first :]
            values[passing.first :] += seen_q @ before.matrix
            normaliser[passing.first :] += (seen_q @ before.normaliser[..., None])[..., 0]

        inverse = inverse_where_positive(normaliser)
        hidden = values.mul_(inverse[..., None])
        ctx.passing, ctx.is_hidden = passing, is_hidden
        ctx.save_for_backward(q, k, v, score, largest, hidden, inverse, *(before or ()))
        after = after or Sums(score.new_empty(0), score.new_empty(0))
        ctx.mark_non_differentiable(*after)
        return hidden, *after

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_hidden: Tensor, *_: Tensor) -> tuple[Any, ...]:
        q, k, v, score, largest, hidden, inverse, *before = ctx.saved_tensors
        with torch.autocast(q.device.type, enabled=False):
            decay = _decay(score, largest, ctx.is_hidden)
            grad_values = grad_hidden * inverse[..., None]
            grad_n = -(grad_values * hidden).sum(-1, keepdim=True)
            grad_values = grad_values.to(q.dtype)

            weights = _times((q @ k.mT).to(score.dtype), decay).to(q.dtype)
            grad_v = weights.mT @ grad_values
            del weights  # large, like what is to come
            # v_s − h_t, times the gradient: summed before it is rounded, as the two may cancel.
            grad_products = (grad_values @ v.mT).to(score.dtype).add_(grad_n)
            grad_products = _times(grad_products, decay).to(q.dtype)
            grad_q = grad_products @ k
            grad_k = grad_products.mT @ q
            del grad_products
            if before:
                grads = (grad_q, grad_k, grad_v)
                add_passed((q, k, v), (grad_values, grad_n), Sums(*before), ctx.passing, grads)
            grad_score = (k.to(score.dtype) * grad_k).sum(-1)
        return grad_q, grad_k, grad_v, grad_score, None, None, None


def inverse_where_positive(normaliser: Tensor) -> Tensor:
    """1/n, and 0 where all weights of a row have underflowed."""
    # Not down to the smallest number: gradients are multiplied by the inverse.
    has_weight = normaliser > torch.finfo(normaliser.dtype).tiny ** 0.75
    return normaliser.reciprocal().masked_fill(~has_weight, 0.0)


def _decay(score: Tensor, largest: Tensor, is_hidden: Tensor) -> Tensor:
    """exp(g_s − M_t), 0 where position t may not see position s: [C, B, N, L, L]."""
    decay = score[..., None, :] - largest[..., None]
    return decay.masked_fill_(is_hidden, -math.inf).exp_()


def _times(products: Tensor, decay: Tensor) -> Tensor:
    """Products [C, B, N, R, L], multiplied in place by the decay of each row's position."""
    by_position = products.view(*decay.shape[:-1], -1, decay.shape[-1])
    by_position.mul_(decay[..., None, :])
    return products
