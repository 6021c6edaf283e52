"""The target tokens of a position: its label and the few ids in its targets.

In: the logits of a chunk, labels and targets. Out: first the log-masses of these ids, which
``vocabulary_pass`` adds to those of all other ids; then, given the latter, cross-entropy, KL and
the gradient by the logits of the target tokens (formulas in ``sparse_kl``). All in float64: it is a
few dozen numbers a position, and what might cancel does so here, such as q − 1 at a label that the
student is sure of.

n positions of a chunk, V vocabulary, K kept ids, J drawn ids, X = K + J + 1 target tokens: these
and the label. Columns are [n, 1].
"""

import math
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from stages.train_student.data.targets.sparse_targets import SparseTargets
from stages.train_student.losses.sampled_softmax import Columns
from stages.train_student.losses.vocabulary_pass import TargetLogMasses, VocabularyWeights


class Terms(NamedTuple):
    """Sums over a chunk, and the gradient by the logits of the target tokens, [n, X]."""

    cross_entropy: Tensor
    kl: Tensor
    gradient_nX: Tensor
    log_r_nX: Tensor
    """Log-probability within the student's tail of those that are not kept, at T; empty without a
    teacher."""


@dataclass(frozen=True)
class TeacherTerms:
    """The teacher's (log-)probabilities at one temperature T, as the targets have them. float64."""

    log_p_nK: Tensor
    log_p_tail_n1: Tensor
    drawn_nJ: Tensor
    """w: estimates of p of the drawn ids."""
    log_p_within_nJ: Tensor
    """Log-probability of a drawn id within the tail."""

    @staticmethod
    def of(targets: SparseTargets, temperature: float) -> "TeacherTerms":
        """``targets`` at T = ``temperature``."""
        log_p_nK, log_p_tail_n = targets.logprobs(temperature)
        if targets.samples is None:
            none_n0 = log_p_nK[:, :0]
            return TeacherTerms(log_p_nK, log_p_tail_n[:, None], none_n0, none_n0)
        share_nJ, log_p_within_nJ = targets.sample_shares(temperature)
        drawn_nJ = share_nJ * log_p_tail_n.exp()[:, None]
        return TeacherTerms(log_p_nK, log_p_tail_n[:, None], drawn_nJ, log_p_within_nJ)

    def chunk(self, rows: slice) -> "TeacherTerms":
        """Those of some positions."""
        return TeacherTerms(
            self.log_p_nK[rows],
            self.log_p_tail_n1[rows],
            self.drawn_nJ[rows],
            self.log_p_within_nJ[rows],
        )

    def tail_target_n1(self) -> Tensor:
        """p_tail − Σw."""
        return self.log_p_tail_n1.exp() - self.drawn_nJ.sum(1, keepdim=True)


@dataclass(frozen=True)
class TargetTokens:
    """The target tokens of some positions; an id counts once. See ``of``."""

    ids_nX: Tensor
    counts_nX: Tensor
    is_label_nX: Tensor
    num_kept: int

    @staticmethod
    def of(labels_n: Tensor, targets: SparseTargets | None) -> "TargetTokens":
        """Kept ids, drawn ids, then the label, which counts if it is none of these."""
        label_n1 = labels_n[:, None]
        ids, counts = [label_n1[:, :0]], [label_n1[:, :0].bool()]
        if targets is not None:
            ids.append(targets.kept_ids_NK)
            counts.append(targets.gaps_NK < math.inf)
            if targets.samples is not None:
                ids.append(targets.samples.ids_NJ)
                counts.append(targets.samples.counts_NJ > 0)
        others_nX, is_real_nX = torch.cat(ids, 1), torch.cat(counts, 1)
        is_new_n1 = ~((others_nX == label_n1) & is_real_nX).any(1, keepdim=True)
        counts_nX = torch.cat((is_real_nX, is_new_n1), 1)
        # What does not count has the id of the label, which is there in any case, and adds nothing.
        ids_nX = torch.where(counts_nX, torch.cat((others_nX, label_n1), 1), label_n1)
        num_kept = 0 if targets is None else targets.kept_ids_NK.shape[1]
        return TargetTokens(ids_nX, counts_nX, (ids_nX == label_n1) & counts_nX, num_kept)

    def chunk(self, rows: slice) -> "TargetTokens":
        """Those of some positions."""
        return TargetTokens(
            self.ids_nX[rows], self.counts_nX[rows], self.is_label_nX[rows], self.num_kept
        )

    def among(self, columns: Columns) -> "TargetTokens":
        """The same tokens as places among ``columns``, which have all of these ids."""
        return replace(self, ids_nX=columns.places(self.ids_nX))

    def take(self, logits_nV: Tensor) -> Tensor:
        """Their logits [n, X] in float64; in ``logits_nV``, −inf takes their place."""
        target_logits_nX = logits_nV.gather(1, self.ids_nX).double()
        logits_nV.scatter_(1, self.ids_nX, -math.inf)
        return target_logits_nX.masked_fill(~self.counts_nX, -math.inf)

    def log_masses(
        self, target_logits_nX: Tensor, teacher: TeacherTerms | None, temperature: float
    ) -> TargetLogMasses:
        """What the pass over the other logits needs of these tokens."""
        log_mass_n1 = target_logits_nX.logsumexp(1, keepdim=True).float()
        if teacher is None:
            return TargetLogMasses(log_mass_n1)
        scores_nX = target_logits_nX / temperature
        return TargetLogMasses(
            log_mass_n1,
            scores_nX.logsumexp(1, keepdim=True).float(),
            scores_nX[:, self.num_kept :].logsumexp(1, keepdim=True).float(),
            teacher.tail_target_n1().float(),
        )

    def terms(
        self,
        target_logits_nX: Tensor,
        rest: list[Tensor],
        teacher: TeacherTerms | None,
        weights: VocabularyWeights,
    ) -> Terms:
        """Both terms, and (c_ce, c_kl, T) = ``weights`` times their gradient.

        ``rest`` is what the pass over the other logits returned.
        """
        ce_weight, kl_weight, temperature = weights
        log_z_n1 = torch.logaddexp(target_logits_nX.logsumexp(1, keepdim=True), rest[0].double())
        label_n1 = target_logits_nX.masked_fill(~self.is_label_nX, 0.0).sum(1, keepdim=True)
        cross_entropy = (log_z_n1 - label_n1).sum()
        gradient_nX = ((target_logits_nX - log_z_n1).exp() - self.is_label_nX.double()) * ce_weight
        if teacher is None:
            no_kl = torch.zeros_like(cross_entropy)
            return Terms(cross_entropy, no_kl, gradient_nX, target_logits_nX[:, :0])
        scores_nX = target_logits_nX / temperature
        kl, by_scores_nX, log_r_nX = self._kl(scores_nX, rest[1].double(), teacher)
        gradient_nX = gradient_nX + by_scores_nX * (kl_weight / temperature)
        return Terms(cross_entropy, kl, gradient_nX, log_r_nX)

    def _kl(
        self, scores_nX: Tensor, rest_n1: Tensor, teacher: TeacherTerms
    ) -> tuple[Tensor, Tensor, Tensor]:
        """ΣKL(p_T ‖ q_T) as far as kept and drawn ids tell, its gradient by the targets' z/T, and
        log r of those that are not kept."""
        kept_nK, others_nX = scores_nX[:, : self.num_kept], scores_nX[:, self.num_kept :]
        log_tail_n1 = torch.logaddexp(others_nX.logsumexp(1, keepdim=True), rest_n1)
        log_z_n1 = torch.logaddexp(kept_nK.logsumexp(1, keepdim=True), log_tail_n1)
        log_q_nK, log_q_tail_n1 = kept_nK - log_z_n1, log_tail_n1 - log_z_n1
        log_r_nX = others_nX - log_tail_n1.masked_fill(log_tail_n1 == -math.inf, 0.0)
        # By z/T in the tail, r_j·tail_excess − w_j; q_j − p_tail·r_j = r_j·(q_tail − p_tail).
        by_others_nX = log_r_nX.exp() * (log_q_tail_n1.exp() - teacher.tail_target_n1())
        num_drawn = teacher.drawn_nJ.shape[1]
        by_others_nX[:, :num_drawn] -= teacher.drawn_nJ
        by_kept_nK = log_q_nK.exp() - teacher.log_p_nK.exp()
        kl = (
            _times_log_ratio(teacher.log_p_nK.exp(), teacher.log_p_nK, log_q_nK)
            + _times_log_ratio(teacher.log_p_tail_n1.exp(), teacher.log_p_tail_n1, log_q_tail_n1)
            + _times_log_ratio(teacher.drawn_nJ, teacher.log_p_within_nJ, log_r_nX[:, :num_drawn])
        )
        return kl, torch.cat((by_kept_nK, by_others_nX), 1), log_r_nX


def _times_log_ratio(weights: Tensor, log_p: Tensor, log_q: Tensor) -> Tensor:
    """Σ weight·(log p − log q); what has no weight adds nothing, for 0·log 0 = 0."""
    return (weights * (log_p - log_q)).masked_fill(weights == 0, 0.0).sum()
