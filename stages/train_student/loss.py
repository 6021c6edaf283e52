"""Cross-entropy and forward KL against sparse targets, through a frozen head, chunk by chunk.

In: hidden states, the head, labels and the cache's targets. Out: one differentiable scalar and the
detached sums behind it. Called by the training step and by validation.

KL(p_T ‖ q_T) runs over K+1 outcomes: the kept ids and "everything else", whose mass the cache holds
for the teacher and the student's own logits give exactly. Nothing is clamped: both sides are proper
distributions, so KL ≥ 0 up to rounding. With S the kept ids, the gradient of KL by logit j is
(q_j − p_j)/T for j in S and (q_j − p_tail·r_j)/T elsewhere, r being the student's distribution
within the tail.

The logits of ``chunk`` positions are the largest thing that exists; the gradient by the hidden
states is taken in the same pass, and none is ever computed for the head, which is frozen.

Shapes: N scored positions, n positions of a chunk, V vocabulary, K kept ids, D width, M nodes 1/T.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

_FP16_LARGEST_GRADIENT = 2.0**14  # where scaling puts it, so that small q_j do not become 0
_NO_INFINITE_SLOPE = 1e-20  # under the root, where student and teacher agree exactly


@dataclass(frozen=True)
class SparseTargets:
    """The teacher's distribution at N positions.

    ``kept_ids_NK`` int64; a position with fewer than K repeats its first id. ``gaps_NK`` float32,
    z_max − z_j ≥ 0 in nats at T = 1; +inf marks such a repetition. ``tail_log_mass_NM`` float32,
    log Σ exp((z_j − z_max)·s) over all ids that are not kept, at every node s = 1/T; −inf where
    there are none.
    """

    kept_ids_NK: Tensor
    gaps_NK: Tensor
    tail_log_mass_NM: Tensor
    inverse_temperatures: tuple[float, ...]

    def chunk(self, start: int, stop: int) -> "SparseTargets":
        """The targets of positions ``start`` to ``stop``."""
        return SparseTargets(
            self.kept_ids_NK[start:stop],
            self.gaps_NK[start:stop],
            self.tail_log_mass_NM[start:stop],
            self.inverse_temperatures,
        )

    def logprobs(self, temperature: float) -> tuple[Tensor, Tensor]:
        """log p_T of the kept ids [N, K] (−inf where repeated) and of the tail [N]."""
        weights_M = lagrange_weights(self.inverse_temperatures, 1.0 / temperature)
        # 0·(−inf) is NaN, so nodes of weight 0 are left out: at a node its own value is exact.
        used = [m for m, weight in enumerate(weights_M) if weight != 0.0]
        weights = self.tail_log_mass_NM.new_tensor([weights_M[m] for m in used])
        tail_N = self.tail_log_mass_NM[:, used] @ weights
        tail_N = tail_N.masked_fill(self.tail_log_mass_NM[:, -1] == -math.inf, -math.inf)
        scores_NK = self.gaps_NK / -temperature
        log_z_N = torch.logaddexp(scores_NK.logsumexp(1), tail_N)
        return scores_NK - log_z_N[:, None], tail_N - log_z_N


@dataclass(frozen=True)
class LossSums:
    """Sums over scored positions, in nats. ``weighted`` carries the gradient."""

    weighted: Tensor
    cross_entropy: Tensor
    kl: Tensor
    num_agreeing: Tensor


def lagrange_weights(nodes: Sequence[float], s: float) -> list[float]:
    """Weights of the nodes' values in the interpolating polynomial at ``s``.

    The log-mass of the tail is a smooth function of 1/T, so a few nodes give it within 0.002 nats
    anywhere between them (Berrut and Trefethen, SIAM Review 46, 2004). Raises ValueError outside
    of the nodes, where that no longer holds.
    """
    if not nodes[0] - 1e-9 <= s <= nodes[-1] + 1e-9:
        raise ValueError(
            f"temperature {1 / s:g} lies outside of what the cache holds, "
            f"{1 / nodes[-1]:g} to {1 / nodes[0]:g}. Choose temperatures within, or make a cache "
            "with more cache_teacher.inverse_temperatures."
        )
    return [
        math.prod((s - other) / (node - other) for other in nodes if other != node)
        for node in nodes
    ]


def sparse_distillation_loss(
    hidden_ND: Tensor,
    head_VD: Tensor,
    labels_N: Tensor,
    targets: SparseTargets | None,
    weighting: tuple[float, float, float],
    chunk: int,
) -> LossSums:
    """c_ce·ΣCE + c_kl·ΣKL_T for ``weighting`` = (c_ce, c_kl, T), differentiable by ``hidden_ND``.

    ``head_VD`` holds the V rows that take part in the softmax, padding rows excluded; products with
    it have float32 results. ``targets`` may be absent when c_kl is 0. Agreement with the teacher is
    counted only where no gradient is asked for.
    The T² of Hinton et al. (arXiv 1503.02531) is the caller's, as part of c_kl.
    """
    sums = _ChunkedLoss.apply(  # type: ignore[no-untyped-call]
        hidden_ND, head_VD, labels_N, targets, weighting, chunk
    )
    return LossSums(*sums)


class _ChunkedLoss(torch.autograd.Function):
    """Loss and gradient in one pass: backward only scales what forward kept."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden_ND: Tensor,
        head_VD: Tensor,
        labels_N: Tensor,
        targets: SparseTargets | None,
        weighting: tuple[float, float, float],
        chunk: int,
    ) -> tuple[Tensor, ...]:
        with torch.autocast(hidden_ND.device.type, enabled=False):
            needs_gradient = hidden_ND.requires_grad
            gradient_ND = (
                torch.zeros_like(hidden_ND, dtype=torch.float32) if needs_gradient else None
            )
            sums = torch.zeros(4, dtype=torch.float64, device=hidden_ND.device)
            for start in range(0, len(labels_N), chunk):
                rows = slice(start, start + chunk)
                part = targets.chunk(start, start + chunk) if targets is not None else None
                gradient_nD, part_sums = _chunk(
                    hidden_ND[rows], head_VD, labels_N[rows], part, weighting, needs_gradient
                )
                sums += part_sums
                if gradient_ND is not None and gradient_nD is not None:
                    gradient_ND[rows] = gradient_nD
        if gradient_ND is not None:
            ctx.save_for_backward(gradient_ND)
        ctx.dtype = hidden_ND.dtype
        weighted, cross_entropy, kl, agreeing = sums.unbind()
        ctx.mark_non_differentiable(cross_entropy, kl, agreeing)
        return weighted.float(), cross_entropy, kl, agreeing

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, by_weighted: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        (gradient_ND,) = ctx.saved_tensors
        return (gradient_ND * by_weighted).to(ctx.dtype), None, None, None, None, None


def _chunk(
    hidden_nD: Tensor,
    head_VD: Tensor,
    labels_n: Tensor,
    targets: SparseTargets | None,
    weighting: tuple[float, float, float],
    needs_gradient: bool,
) -> tuple[Tensor | None, Tensor]:
    """The gradient by ``hidden_nD`` and (weighted, CE, KL, agreeing) of one chunk."""
    ce_weight, kl_weight, temperature = weighting
    logits_nV = _product(hidden_nD, head_VD.T)
    log_z_n = logits_nV.logsumexp(1, keepdim=True)
    cross_entropy = (log_z_n - logits_nV.gather(1, labels_n[:, None])).double().sum()
    kl = torch.zeros_like(cross_entropy)
    agreeing = torch.zeros_like(cross_entropy)
    if targets is not None and not needs_gradient:
        agreeing = (logits_nV.argmax(1) == targets.kept_ids_NK[:, 0]).double().sum()
    gradient_nV = None
    if needs_gradient and ce_weight:
        gradient_nV = (logits_nV - log_z_n).exp_().mul_(ce_weight)
        gradient_nV.scatter_add_(1, labels_n[:, None], log_z_n.new_full(log_z_n.shape, -ce_weight))
    if targets is not None and kl_weight:
        kl, by_logits_nV = _kl(logits_nV, targets, temperature, needs_gradient)
        if by_logits_nV is not None:
            by_logits_nV *= kl_weight
            gradient_nV = by_logits_nV if gradient_nV is None else gradient_nV.add_(by_logits_nV)
    weighted = ce_weight * cross_entropy + kl_weight * kl
    sums = torch.stack((weighted, cross_entropy, kl, agreeing))
    if gradient_nV is None or not needs_gradient:
        return None, sums
    scale = 1.0
    if head_VD.dtype == torch.float16:
        largest = ce_weight + kl_weight / temperature
        scale = 2.0 ** math.floor(math.log2(_FP16_LARGEST_GRADIENT / largest))
    return _product(gradient_nV.mul_(scale), head_VD).div_(scale), sums


def _kl(
    logits_nV: Tensor, targets: SparseTargets, temperature: float, needs_gradient: bool
) -> tuple[Tensor, Tensor | None]:
    """ΣKL(p_T ‖ q_T) over K+1 outcomes and its gradient by the logits. Consumes ``logits_nV``."""
    log_p_nK, log_p_tail_n = targets.logprobs(temperature)
    is_repeated_nK = targets.gaps_NK == math.inf
    scores_nV = logits_nV.div_(temperature)
    kept_nK = scores_nV.gather(1, targets.kept_ids_NK).masked_fill(is_repeated_nK, -math.inf)
    scores_nV.scatter_(1, targets.kept_ids_NK, -math.inf)  # from here on: the tail alone
    tail_n = scores_nV.logsumexp(1)
    log_z_n = torch.logaddexp(kept_nK.logsumexp(1), tail_n)
    log_q_nK, log_q_tail_n = kept_nK - log_z_n[:, None], tail_n - log_z_n
    p_nK, p_tail_n = log_p_nK.exp(), log_p_tail_n.exp()
    # p·(log p − log q) with 0·log 0 = 0: an outcome the teacher gives no mass adds nothing.
    kl_nK = torch.where(p_nK > 0, p_nK * (log_p_nK - log_q_nK), 0.0)
    kl_tail_n = torch.where(p_tail_n > 0, p_tail_n * (log_p_tail_n - log_q_tail_n), 0.0)
    kl = (kl_nK.sum(1) + kl_tail_n).double().sum()
    if not needs_gradient:
        return kl, None
    # Elsewhere: q_j − p_tail·r_j = r_j·(q_tail − p_tail), with r_j = exp(score_j − tail).
    has_tail_n = tail_n > -math.inf
    surplus_n = torch.where(has_tail_n, log_q_tail_n.exp() - p_tail_n, 0.0)
    tail_n = torch.where(has_tail_n, tail_n, 0.0)
    by_scores_nV = scores_nV.sub_(tail_n[:, None]).exp_().mul_(surplus_n[:, None])
    by_scores_nV.scatter_add_(1, targets.kept_ids_NK, log_q_nK.exp() - p_nK)
    return kl, by_scores_nV.div_(temperature)


def _product(left: Tensor, right: Tensor) -> Tensor:
    """left @ right in float32; on GPUs from factors in the precision of ``right``."""
    if right.is_cuda and right.dtype != torch.float32:
        return torch.mm(left.to(right.dtype), right, out_dtype=torch.float32)
    return left.float() @ right.float()


def sketched_frobenius(
    hidden_BTD: Tensor, sketch_BTd: Tensor, signs_BDd: Tensor, is_scored_BT: Tensor
) -> Tensor:
    """L_F = ‖h_teacher − h_student‖_F / √numel over scored positions, estimated from sketches.

    With S = signs/√d, E[‖Sᵀx‖²] = ‖x‖², so the mean over positions of ‖Sᵀ(h_t − h_s)‖²/D is an
    unbiased estimate of the mean square; the root of it is the paper's term.
    """
    with torch.autocast(hidden_BTD.device.type, enabled=False):
        width, dim = signs_BDd.shape[1:]
        projected_BTd = hidden_BTD.float() @ signs_BDd.float() / math.sqrt(dim)
        squares_BT = (projected_BTd - sketch_BTd).square().sum(2) * is_scored_BT
        mean_square = squares_BT.sum() / (is_scored_BT.sum() * width)
        return (mean_square + _NO_INFINITE_SLOPE).sqrt()
