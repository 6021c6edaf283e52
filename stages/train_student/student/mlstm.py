"""The mLSTM over all positions at once, documents kept apart, optionally going on from a state.

In: queries, keys, values and gate pre-activations. Out: hidden states; and, on request, the state
after the last position. Called by the mLSTM layers of the student, for training, for the prompt
and, with T = 1, for each generated token.

The package's parallel form (Beck et al., arXiv 2405.04517, eq. 19-27 and appendix A.3) with the
stabiliser factored: with F the cumulative sum of log σ(f̃) within the document and g = ĩ − F, key s
weighs exp(F_t + g_s) at position t. Relative to the largest weight of its row that is
exp(g_s − M_t), M_t = max g_s over the visible s: F_t has cancelled, and remains only in the floor
of the normaliser, exp(−F_t − M_t). M is a common factor of numerator, normaliser and floor, and
would cancel but for the package's ε beside the normaliser; so it is differentiated like the rest.

Gates, sums and weights are float32 (or float64). Under bfloat16 autocast the products of queries,
keys and values are bfloat16; under float16 they stay float32, because sums that are yet to be
normalised do not fit float16's range.

Shapes: B batch, N heads, T positions, H width of a head.
"""

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import logsigmoid

from stages.train_student.student.document_layout import DocumentLayout

_EPSILON = 1e-6  # the package's


class CellState(NamedTuple):
    """State after a position: matrix C and normaliser n, both scaled by exp(−m)."""

    matrix_BNHH: Tensor
    normaliser_BNH: Tensor
    max_BN: Tensor


class Decay(NamedTuple):
    """Log-weights of the positions: F, g = ĩ − F, and M, the largest g a position sees."""

    forgotten_BNT: Tensor
    input_BNT: Tensor
    largest_BNT: Tensor


def empty_cell_state(batch: int, num_heads: int, width: int, like: Tensor) -> CellState:
    """The state before the first position of a document."""
    return CellState(
        like.new_zeros(batch, num_heads, width, width),
        like.new_zeros(batch, num_heads, width),
        like.new_full((batch, num_heads), -math.inf),
    )


def decay(
    input_gate_BNT: Tensor,
    forget_gate_BNT: Tensor,
    layout: DocumentLayout,
    state: CellState | None,
) -> Decay:
    """Log-weights from gate pre-activations.

    F is summed in float64 and restarts in every document, so that a document's weights are the
    same to the last bit or two wherever in a row it lies.
    """
    log_forget = logsigmoid(forget_gate_BNT).double()
    total = log_forget.cumsum(-1)
    if layout.documents is not None:
        # Only differences of F within a document matter, so what is subtracted gets no gradient.
        before = (total - log_forget).detach()
        before = before.gather(-1, layout.documents.first_BT[:, None].expand_as(before))
        total = total - before.masked_fill(layout.documents.continues_BT[:, None], 0.0)
    forgotten = total.to(forget_gate_BNT.dtype)
    inputs = input_gate_BNT - forgotten

    largest = inputs.double()
    if layout.documents is not None:
        # Documents in rising bands that do not overlap: the running maximum restarts with each.
        height = (largest.max() - largest.min()).detach() + 1.0
        band = layout.documents.index_BT[:, None] * height
        largest = (largest + band).cummax(-1).values - band
    else:
        largest = largest.cummax(-1).values
    largest = largest.to(inputs.dtype)
    if state is not None:
        largest = torch.maximum(largest, _state_score(state, layout))
    return Decay(forgotten, inputs, largest)


def mlstm_parallel(
    qkv_BNTH: tuple[Tensor, Tensor, Tensor],
    weights: Decay,
    layout: DocumentLayout,
    state: CellState | None,
) -> Tensor:
    """Hidden states [B, N, T, H] before the layer's norm. No gradient flows into ``state``."""
    q, k, v = qkv_BNTH
    wide = weights.input_BNT.dtype
    dtype = torch.bfloat16 if q.dtype == torch.bfloat16 else wide
    with torch.autocast(q.device.type, enabled=False):
        values, normaliser = _WeightedSums.apply(  # type: ignore[no-untyped-call]
            q.to(dtype),
            _scaled(k).to(dtype),
            v.to(dtype),
            weights.input_BNT,
            weights.largest_BNT,
            layout.is_hidden_BTT[:, None],
        )
        if state is not None:
            kept = (_state_score(state, layout) - weights.largest_BNT).exp()
            state_q = q.to(wide) * kept[..., None]
            values = values + state_q @ state.matrix_BNHH
            normaliser = normaliser + (state_q @ state.normaliser_BNH[..., None]).squeeze(-1)
        floor = torch.exp(-(weights.forgotten_BNT + weights.largest_BNT))
        normaliser = torch.maximum(normaliser.abs(), floor) + _EPSILON
        return values / normaliser[..., None]  # type: ignore[no-any-return]


def mlstm_final_state(
    kv_BNTH: tuple[Tensor, Tensor], weights: Decay, layout: DocumentLayout, state: CellState
) -> CellState:
    """The state after the last position: what that position's weights sum up."""
    wide = weights.input_BNT.dtype
    with torch.no_grad(), torch.autocast(kv_BNTH[0].device.type, enabled=False):
        k, v = _scaled(kv_BNTH[0]).to(wide), kv_BNTH[1].to(wide)
        largest = weights.largest_BNT[..., -1:]
        is_hidden = layout.is_hidden_BTT[:, None, -1]
        weighed = (weights.input_BNT - largest).masked_fill(is_hidden, -math.inf).exp()
        weighed_k = k * weighed[..., None]
        kept = (_state_score(state, layout)[..., -1:] - largest).exp()
        return CellState(
            weighed_k.transpose(-1, -2) @ v + kept[..., None] * state.matrix_BNHH,
            weighed_k.sum(-2) + kept * state.normaliser_BNH,
            weights.forgotten_BNT[..., -1] + largest[..., 0],
        )


class _WeightedSums(torch.autograd.Function):
    """Σ_s D_ts (q_t·k_s) v_s and Σ_s D_ts (q_t·k_s), where D_ts = exp(g_s − M_t) if visible.

    Backward keeps no [T, T] but D and C = D ∘ q kᵀ. The gradient by log D_ts is C_ts (du_t·v_s +
    dn_t); summed over t it is that by g_s, v_s·dv_s + Σ_t C_ts dn_t, and summed over s minus that
    by M_t, du_t·u_t + dn_t·n_t.
    """

    @staticmethod
    def forward(
        ctx: Any, q: Tensor, k: Tensor, v: Tensor, g: Tensor, largest: Tensor, is_hidden: Tensor
    ) -> tuple[Tensor, Tensor]:
        weights = g[..., None, :] - largest[..., None]
        weights.masked_fill_(is_hidden, -math.inf).exp_()
        products = torch.matmul(q, k.transpose(-1, -2)).to(g.dtype).mul_(weights)
        normaliser = products.sum(-1)
        products = products.to(q.dtype)
        values = torch.matmul(products, v).to(g.dtype)
        ctx.save_for_backward(q, k, v, weights.to(q.dtype), products, values, normaliser)
        return values, normaliser

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_values: Tensor, grad_normaliser: Tensor) -> tuple[Any, ...]:
        q, k, v, weights, products, values, normaliser = ctx.saved_tensors
        with torch.autocast(q.device.type, enabled=False):
            grad = grad_values.to(q.dtype)
            products_t = products.transpose(-1, -2)
            grad_v = torch.matmul(products_t, grad)
            grad_column = grad_normaliser[..., None]
            grad_g = (v.to(grad_column.dtype) * grad_v).sum(-1)
            grad_g += torch.matmul(products_t, grad_column.to(q.dtype)).squeeze(-1)
            grad_products = torch.matmul(grad, v.transpose(-1, -2))
            grad_products.add_(grad_column).mul_(weights)
            grad_q = torch.matmul(grad_products, k)
            grad_k = torch.matmul(grad_products.transpose(-1, -2), q)
            grad_largest = -(grad_values * values).sum(-1) - grad_normaliser * normaliser
        return grad_q, grad_k, grad_v, grad_g, grad_largest, None


def _scaled(k: Tensor) -> Tensor:
    return k / math.sqrt(k.shape[-1])


def _state_score(state: CellState, layout: DocumentLayout) -> Tensor:
    """What stands for g in the weight of the state, [B, N, T] or [B, N, 1]."""
    score = state.max_BN[..., None]
    if layout.documents is not None:
        score = score.masked_fill(~layout.documents.continues_BT[:, None], -math.inf)
    return score
