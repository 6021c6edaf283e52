"""Cross-entropy and forward KL against sparse targets, through a frozen head, chunk by chunk.

In: hidden states, the head, labels and the cache's targets. Out: one differentiable scalar and the
detached sums behind it. Called by the training step and by validation.

With S the kept ids, p_tail and q_tail the mass of all others, and r the student's distribution
within the tail, KL(p ‖ q) at a temperature is, by the chain rule,

    Σ_S p_j (log p_j − log q_j) + p_tail (log p_tail − log q_tail) + p_tail · KL within the tail.

The first two terms run over K+1 outcomes: the cache holds the teacher's tail mass, the student's
own logits give its. Nothing is clamped: both sides are proper distributions, so they are ≥ 0 up to
rounding. The gradient by logit j is (q_j − p_j)/T for j in S. The rest depends on the targets:

- ``top_k``: the last term is left out. The gradient elsewhere is (q_j − p_tail·r_j)/T: the tail is
  taught as a whole and keeps the student's own shape. So against the full KL each j there is off by
  (p_j − p_tail·r_j)/T, and the value is too low by the last term.
- ``top_k+sampled``: the last term is estimated from m draws (``SparseTargets.draw_shares``). With
  w_j the estimates of p_j, 0 if j was not drawn, the value gains Σ w_j (log p_j/p_tail − log r_j),
  and the gradient elsewhere is (q_j − p̂_j)/T with p̂_j = w_j + (p_tail − Σw)·r_j. Both are unbiased
  for the full KL at every T within the nodes, given exact gaps and log-masses. At the temperature
  that ids were drawn at, Σw = p_tail and no gap enters the gradient. At others the last part of p̂
  is a control variate: gradients sum to 0, a constant added to the student's logits adds no noise,
  and most of the value's is gone. Dividing by Σw instead would be biased, and less noisy only where
  the two temperatures are far apart. A position's value may be negative.
- ``sampled`` (RS-KD, arXiv 2503.16870): S are the drawn ids, p̂_j = c_j/m, and there is no tail. The
  gradient (q_j − p̂_j)/T is unbiased for KL(p_T ‖ q_T) at the temperature of the draws, the only one
  at which these say anything. The value is not: it is too high by H(p) − E H(p̂).

The logits of ``chunk`` positions are the largest thing that exists; the gradient by the hidden
states is taken in the same pass, and none is ever computed for the head, which is frozen.

Shapes: N scored positions, n positions of a chunk, V vocabulary, K kept ids, J drawn ids, D width.
"""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from stages.train_student.objective.sparse_targets import SparseTargets

_FP16_LARGEST_GRADIENT = 2.0**14  # where scaling puts it, so that small q_j do not become 0


@dataclass(frozen=True)
class LossSums:
    """Sums over scored positions, in nats. ``weighted`` carries the gradient."""

    weighted: Tensor
    cross_entropy: Tensor
    kl: Tensor
    num_agreeing: Tensor


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
    it have float32 results. ``targets`` may be absent when c_kl is 0. Agreement with the teacher,
    whose choice is the first kept id (where all are drawn: the one drawn most), is counted only
    where no gradient is asked for.
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
    if head_VD.dtype != torch.float16:
        return _product(gradient_nV, head_VD), sums
    largest = gradient_nV.new_tensor(ce_weight + kl_weight / temperature)
    if targets is not None and targets.draws is not None:  # estimates of p_j may exceed 1
        largest = torch.linalg.vector_norm(gradient_nV, math.inf).maximum(largest)
    scale = (_FP16_LARGEST_GRADIENT / largest).log2().floor().exp2()
    return _product(gradient_nV.mul_(scale), head_VD).div_(scale), sums


def _kl(
    logits_nV: Tensor, targets: SparseTargets, temperature: float, needs_gradient: bool
) -> tuple[Tensor, Tensor | None]:
    """ΣKL(p_T ‖ q_T) as far as the targets tell, and its gradient by the logits.

    Consumes ``logits_nV``.
    """
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
    kl_n = torch.where(p_tail_n > 0, p_tail_n * (log_p_tail_n - log_q_tail_n), 0.0) + kl_nK.sum(1)
    has_tail_n = tail_n > -math.inf
    # By scores in the tail, r_j·surplus − w_j; q_j − p_tail·r_j = r_j·(q_tail − p_tail).
    surplus_n = torch.where(has_tail_n, log_q_tail_n.exp() - p_tail_n, 0.0)
    drawn_nJ = None
    if targets.draws is not None:
        share_nJ, log_p_nJ = targets.draw_shares(temperature)
        log_r_nJ = scores_nV.gather(1, targets.draws.ids_NJ) - tail_n[:, None]
        drawn_nJ = share_nJ * p_tail_n[:, None]
        kl_n += torch.where(drawn_nJ > 0, drawn_nJ * (log_p_nJ - log_r_nJ), 0.0).sum(1)
        surplus_n += drawn_nJ.sum(1)
    kl = kl_n.double().sum()
    if not needs_gradient:
        return kl, None
    tail_n = torch.where(has_tail_n, tail_n, 0.0)
    by_scores_nV = scores_nV.sub_(tail_n[:, None]).exp_().mul_(surplus_n[:, None])
    by_scores_nV.scatter_add_(1, targets.kept_ids_NK, log_q_nK.exp() - p_nK)
    if targets.draws is not None and drawn_nJ is not None:
        by_scores_nV.scatter_add_(1, targets.draws.ids_NJ, -drawn_nJ)
    return kl, by_scores_nV.div_(temperature)


def _product(left: Tensor, right: Tensor) -> Tensor:
    """left @ right in float32, from factors in the precision of ``right``."""
    left = left.to(right.dtype)
    if right.is_cuda and right.dtype != torch.float32:
        return torch.mm(left, right, out_dtype=torch.float32)
    return left.float() @ right.float()
