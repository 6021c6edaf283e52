"""What the moments of the teacher's tail add to the KL, for a student with the teacher's head.

In: a chunk's hidden states h, and the distributions of student and teacher within the tail as far
as each is known. Out: what is added to the KL, and to its gradient by h. With w_j the head's rows
and s = 1/T, both distributions within the tail, p̃ and r, belong to an exponential family:
r_j ∝ exp(s h·w_j). So, with m and m′ the means of w_j under p̃ and r, and H and H′ their entropies,

    KL(p̃ ‖ r) = H′ − H − s h·(m − m′),   its gradient by h is s (m′ − m).

A cache holds p_tail·(B m − B m̄) and p_tail·(H − H̄) for a basis B (``cache_format``'s
``tables/tail_moment``). What lies outside of B is left as it is known without moments:

- ``top_k``: not at all. The gradient gains p_tail·s·Bᵀ(B m′ − B m), and the value p_tail·(H′ − H) −
  p_tail·s (B h)·(B m − B m′). The error of the gradient, p_tail·s·(m′ − m) without moments, becomes
  its part outside of B: it is never larger. If B is the whole space, value and gradient are those
  of the full KL; otherwise the gradient is not the value's.
- ``top_k+sampled``: from draws, whose estimate of p_tail·(m − m′) is δ = Σ w_j (w_j − m′), in the
  notation of ``sparse_kl`` for the first factor. Within B it is replaced by what is known, so that
  its noise is gone there, and outside of B it remains unbiased: moments are a control variate. The
  value takes H from the cache in the place of its estimate, −Σ w_j log p̃_j.

One formula has both: with c = p_tail·B m − Σ w_j B w_j − (p_tail − Σw)·B m′ the gradient gains
−s·Bᵀc, and the value (p_tail − Σw)·H′ − p_tail·H − Σ w_j log p̃_j − s (B h)·c. All of B w_j, B m and
B m′ may have the same vector taken off, and all entropies and −log p̃_j the same number: the table,
and what the cache holds, have their means off.

n positions of a chunk, X target tokens that are not kept, J of them drawn, D width, d basis,
e = d + 1, C columns of the head.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from stages.train_student.data.targets.tail_moment import MomentTables, TailMoments
from stages.train_student.losses.target_tokens import TeacherTerms


class MomentTerms(NamedTuple):
    """What moments add: to ΣKL, and to its gradient by the hidden states."""

    kl: Tensor
    by_hidden_nD: Tensor


class StudentTail(NamedTuple):
    """The student's distribution within the tail, r, at T."""

    neg_entropy_n1: Tensor
    """Σ r log r over the columns that are no target tokens."""
    sum_nd: Tensor
    """Σ r·(row of the table) over these."""
    log_r_nX: Tensor
    """Of the target tokens, float64; −inf for what does not count."""
    rows_nXd: Tensor
    """Their rows of the table."""


@dataclass(frozen=True)
class TailMomentLoss:
    """Moments at all positions of a call, at one temperature."""

    moments_Ne: Tensor
    tables: MomentTables
    table_Vd: Tensor
    """That of ``tables``, in the precision that it multiplies in."""
    inverse_temperature: float

    @staticmethod
    def of(moments: TailMoments, temperature: float, dtype: torch.dtype) -> "TailMomentLoss":
        """``dtype``: of the product of shares and table."""
        tables = moments.tables
        found_Ne = moments.at(temperature)
        return TailMomentLoss(found_Ne, tables, tables.table_Vd.to(dtype), 1 / temperature)

    def table(self, ids_C: Tensor | None) -> Tensor:
        """Its rows for the columns ``ids_C``, or for all ids."""
        return self.table_Vd if ids_C is None else self.table_Vd.index_select(0, ids_C)

    def terms(
        self,
        rows: slice,
        hidden_nD: Tensor,
        tail: StudentTail,
        teacher: TeacherTerms,
    ) -> MomentTerms:
        """For the chunk ``rows``."""
        s, tables = self.inverse_temperature, self.tables
        rows_nXd = tail.rows_nXd.double()
        mean_nd = tail.sum_nd.double() + (tail.log_r_nX.exp()[:, :, None] * rows_nXd).sum(1)
        entropy_n1 = -tail.neg_entropy_n1.double() - _times(tail.log_r_nX.exp(), tail.log_r_nX)
        # What rounding left of u where there is no tail.
        has_tail_n1 = teacher.log_p_tail_n1 > -torch.inf
        moments_ne = self.moments_Ne[rows].double() * has_tail_n1
        drawn_nJ, target_n1 = teacher.drawn_nJ, teacher.tail_target_n1()
        drawn_nd = (drawn_nJ[:, :, None] * rows_nXd[:, : drawn_nJ.shape[1]]).sum(1)
        correction_nd = moments_ne[:, :-1] - drawn_nd - target_n1 * mean_nd
        center = tables.entropy_center.double()
        at_basis_nd = hidden_nD.float() @ tables.basis_dD.T
        kl_n1 = (
            target_n1 * (entropy_n1 - center)
            - moments_ne[:, -1:]
            - _times(drawn_nJ, teacher.log_p_within_nJ + center)
            - s * (at_basis_nd.double() * correction_nd).sum(1, keepdim=True)
        )
        by_hidden_nD = (correction_nd * -s).float() @ tables.basis_dD
        return MomentTerms(kl_n1.sum(), by_hidden_nD)


def _times(weights_nX: Tensor, logs_nX: Tensor) -> Tensor:
    """Σ weight·log, [n, 1]; what has no weight adds nothing, for 0·log 0 = 0."""
    return (weights_nX * logs_nX).masked_fill(weights_nX == 0, 0.0).sum(1, keepdim=True)
