"""The mLSTM's sums, chunk by chunk: each chunk sees its own keys one by one, earlier ones as a sum.

In: queries, keys, values and log-weights, cut into chunks. Out: hidden states and the state after
the last chunk. Own backward; pure PyTorch, any device; compute and memory grow with C·L², so one
chunk is the parallel form, O(T²), and chunks of a fixed length are O(T).

Key s weighs D_ts = exp(g_s − M_t) at position t of its chunk. To later chunks a chunk passes
    S' = κ S + Σ_s exp(g_s − M_last) k_s v_sᵀ,   κ = exp(m − M_last),
(and n' likewise, without v), of which position t of the next sees exp(m − M_t) q_t S; m is the
log of the scale that S lacks. All of these are products of factors exp(g_s) and exp(−M_t): what
lies between cancels. So is the gradient by g_s that by k_s times k_s, and the gradient by M_t
minus that by q_t times q_t, whatever way a weight took.

Shapes: C chunks, B batch, N heads, L positions of a chunk, H width of a head.
"""

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

_EPSILON = 1e-6  # the package's


class Sums(NamedTuple):
    """Σ k vᵀ [..., H, H] and Σ k [..., H], weighed."""

    matrix: Tensor
    normaliser: Tensor


@dataclass(frozen=True, kw_only=True)
class Passing:
    """Weights of what passes from chunk to chunk, constants: the gradient goes by g and M.

    ``seen_CBNL``: of the state before its chunk, at a position. ``left_CBNL``: of a key, in the
    state after its chunk. ``kept_CBN``: of the state before a chunk, in the one after it.
    ``state``: before the first chunk; where it is given, that after the last is wanted, too.
    """

    seen_CBNL: Tensor
    left_CBNL: Tensor
    kept_CBN: Tensor
    state: Sums | None

    @property
    def first(self) -> int:
        """The first chunk before which there is a state."""
        return 1 if self.state is None else 0


class ChunkwiseSums(torch.autograd.Function):
    """h_t = V_t / (max(|n_t|, exp(−m_t)) + ε), V = Σ_s D_ts (q_t·k_s) v_s, n = Σ_s D_ts (q_t·k_s).

    Arguments: q, k, v [C, B, N, L, H]; g, M and m = F + M [C, B, N, L], at least float32, which is
    the precision of every sum; ``is_hidden`` [1 or C, 1 or B, 1, L, L]; and what passes between
    chunks. Returns h and the sums after the last chunk (empty without a state before the first).
    """

    @staticmethod
    def forward(
        ctx: Any,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        score: Tensor,
        largest: Tensor,
        stabiliser: Tensor,
        is_hidden: Tensor,
        passing: Passing,
    ) -> tuple[Tensor, Tensor, Tensor]:
        decay = score[..., None, :] - largest[..., None]
        decay.masked_fill_(is_hidden, -math.inf).exp_()
        products = (q @ k.mT).to(score.dtype).mul_(decay)
        normaliser = products.sum(-1)
        products = products.to(q.dtype)
        values = (products @ v).to(score.dtype)

        before, after = states_between_chunks(k, v, passing)
        if before is not None:
            seen_q = weighed(q, passing.seen_CBNL)[passing.first :]
            values[passing.first :] += seen_q @ before.matrix
            normaliser[passing.first :] += (seen_q @ before.normaliser[..., None])[..., 0]

        # Finite, as 0 · ∞ in the backward would be no number.
        floor = torch.exp(-stabiliser).clamp_(max=torch.finfo(score.dtype).max)
        is_above = normaliser.abs() > floor
        divisor = torch.where(is_above, normaliser.abs(), floor).add_(_EPSILON)
        hidden = values.div_(divisor[..., None])
        ctx.passing = passing
        ctx.save_for_backward(
            *(q, k, v, decay.to(q.dtype), products, hidden, divisor),
            normaliser.sign().mul_(is_above),
            floor.masked_fill_(is_above, 0.0),
            *(before or ()),
        )
        after = after or Sums(score.new_empty(0), score.new_empty(0))
        ctx.mark_non_differentiable(*after)
        return hidden, *after

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_hidden: Tensor, *_: Tensor) -> tuple[Any, ...]:
        q, k, v, decay, products, hidden, divisor, sign, floor, *before = ctx.saved_tensors
        with torch.autocast(q.device.type, enabled=False):
            grad_values = grad_hidden / divisor[..., None]
            grad_divisor = -(grad_values * hidden).sum(-1)
            grad_stabiliser = -floor * grad_divisor
            grad_n = (sign * grad_divisor)[..., None]
            grad_values = grad_values.to(q.dtype)

            grad_v = products.mT @ grad_values
            grad_products = (grad_values @ v.mT).add_(grad_n).mul_(decay)
            grad_q = grad_products @ k
            grad_k = grad_products.mT @ q
            del grad_products  # large, like what is to come
            if before:
                grads = (grad_q, grad_k, grad_v)
                add_passed((q, k, v), (grad_values, grad_n), Sums(*before), ctx.passing, grads)
            grad_score = (k.to(divisor.dtype) * grad_k).sum(-1)
            grad_largest = -(q.to(divisor.dtype) * grad_q).sum(-1)
        return grad_q, grad_k, grad_v, grad_score, grad_largest, grad_stabiliser, None, None


def states_between_chunks(
    k: Tensor, v: Tensor, passing: Passing
) -> tuple[Sums | None, Sums | None]:
    """The sums before each chunk that has any, in the precision of k, and those after the last."""
    num_left = len(k) - passing.first
    if num_left == 0:
        return None, None
    left_k = k[:num_left] * passing.left_CBNL[:num_left, ..., None]
    sums = Sums((left_k.to(k.dtype).mT @ v[:num_left]).to(left_k.dtype), left_k.sum(-2))
    after = passing.state
    for matrix, normaliser, kept in zip(*sums, passing.kept_CBN, strict=False):
        if after is not None:
            matrix.addcmul_(after.matrix, kept[..., None, None])
            normaliser.addcmul_(after.normaliser, kept[..., None])
        after = Sums(matrix, normaliser)
    if passing.state is None:
        return Sums(*(part.to(k.dtype) for part in sums)), None
    pairs = zip(passing.state, sums, strict=True)
    before = (torch.cat([given[None], part[:-1]]).to(k.dtype) for given, part in pairs)
    return Sums(*before), Sums(*(part[-1].clone() for part in sums))


def add_passed(
    qkv: tuple[Tensor, Tensor, Tensor],
    grad_values_and_n: tuple[Tensor, Tensor],
    before: Sums,
    passing: Passing,
    grads: tuple[Tensor, Tensor, Tensor],
) -> None:
    """Adds to the gradients by q, k and v what passed through the states between chunks."""
    (q, k, v), (grad_values, grad_n), (grad_q, grad_k, grad_v) = qkv, grad_values_and_n, grads
    first = passing.first
    grad_seen = grad_values[first:] @ before.matrix.mT
    grad_seen.addcmul_(grad_n[first:].to(q.dtype), before.normaliser[..., None, :])
    grad_q[first:] += grad_seen.mul_(passing.seen_CBNL[first:, ..., None])
    del grad_seen
    if len(k) == 1:
        return
    # By the states before chunks 1 to C − 1, which are those after chunks 0 to C − 2.
    seen_q = weighed(q[1:], passing.seen_CBNL[1:])
    grad_matrix = (seen_q.mT @ grad_values[1:]).to(grad_n.dtype)
    grad_normaliser = (seen_q.mT @ grad_n[1:].to(q.dtype))[..., 0].to(grad_n.dtype)
    del seen_q
    for chunk in range(len(k) - 2, 0, -1):
        kept = passing.kept_CBN[chunk, ..., None]
        grad_matrix[chunk - 1].addcmul_(grad_matrix[chunk], kept[..., None])
        grad_normaliser[chunk - 1].addcmul_(grad_normaliser[chunk], kept)
    grad_matrix = grad_matrix.to(q.dtype)
    left = passing.left_CBNL[:-1]
    grad_left = v[:-1] @ grad_matrix.mT
    grad_left += grad_normaliser[..., None, :]
    grad_k[:-1] += grad_left.mul_(left[..., None])
    del grad_left
    grad_v[:-1] += weighed(k[:-1], left) @ grad_matrix


def weighed(x: Tensor, weight: Tensor) -> Tensor:
    return (x * weight[..., None]).to(x.dtype)
