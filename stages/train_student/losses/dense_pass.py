"""The pass over the logits of both models: CE and KL of a chunk, and the gradient.

In: the student's logits z and the teacher's z'. Out: log Z and KL of every position, and the
gradient by z. With log Z and log Z' the log-sums of exp(z/T) and exp(z'/T),

    KL(p ‖ q) = E_p[z'/T − z/T] + log Z − log Z',   dKL/dz = (q − p)/T.

Where a chunk has a sample of the head's columns (``sampled_softmax``), a column stands for a number
of ids, and every sum over ids counts it so often; z' is then such that its own sum is right.

Compiled, a row is read a few times while it lies in a core's cache; not compiled, the same formulas
read it a dozen times.

n positions of a chunk, V vocabulary or the columns that stand for it; columns are [n, 1].
"""

import torch
from torch import Tensor

from stages.compute.compiling import Compiled, Mode
from stages.train_student.losses.vocabulary_pass import (
    DeviceWeights,
    VocabularyWeights,
    rows_at_a_time,
)


class DensePass:
    """The pass over both logits, compiled once for all chunks of a run."""

    def __init__(self, mode: Mode, device: torch.device) -> None:
        names = {
            "what": "the loss with a teacher in the loop is computed",
            "setting": "train_student.compile",
        }
        self._both_terms = Compiled(_both_terms, mode, device, **names)
        self._weighted_terms = Compiled(_weighted_terms, mode, device, **names)

    @property
    def is_compiled(self) -> bool:
        """Whether it runs compiled."""
        return self._both_terms.is_compiled

    def __call__(
        self,
        logits_nV: Tensor,
        teacher_nV: Tensor,
        weights: VocabularyWeights,
        log_weight_V: Tensor | None = None,
    ) -> list[Tensor]:
        """log Z and KL of each position, [n, 1]. The gradient is written over ``logits_nV``.

        It lacks the labels' −c_ce. ``weights`` = (c_ce, c_kl, T). ``log_weight_V``: log of how many
        ids each column stands for; without it, one each.
        """
        scalars: tuple[Tensor, ...] = DeviceWeights.of(weights, logits_nV.device)
        function = self._both_terms
        if log_weight_V is not None:
            function, scalars = self._weighted_terms, (*scalars, log_weight_V)
        size = rows_at_a_time(logits_nV, function.is_compiled, num_logits=2)
        parts = zip(torch.split(logits_nV, size), torch.split(teacher_nV, size), strict=True)
        found = [function(*both, *scalars) for both in parts]
        return [torch.cat(columns) for columns in zip(*found, strict=True)]


def _both_terms(
    logits_nV: Tensor,
    teacher_nV: Tensor,
    ce_weight: Tensor,
    kl_weight: Tensor,
    inverse_temperature: Tensor,
    log_weight_V: Tensor | None = None,
) -> tuple[Tensor, ...]:
    max_n1 = logits_nV.amax(1, keepdim=True)
    below_nV = logits_nV - max_n1
    log_z_n1 = max_n1 + _weighted(below_nV, log_weight_V).exp().sum(1, keepdim=True).log()
    scores_nV = below_nV * inverse_temperature
    teacher_scores_nV = (teacher_nV - teacher_nV.amax(1, keepdim=True)) * inverse_temperature
    weighted_nV = _weighted(scores_nV, log_weight_V)
    teacher_weighted_nV = _weighted(teacher_scores_nV, log_weight_V)
    log_sum_n1 = weighted_nV.exp().sum(1, keepdim=True).log()
    teacher_log_sum_n1 = teacher_weighted_nV.exp().sum(1, keepdim=True).log()
    p_nV = (teacher_weighted_nV - teacher_log_sum_n1).exp()
    kl_n1 = (p_nV * (teacher_scores_nV - scores_nV)).sum(1, keepdim=True)
    by_ce_nV = (_weighted(logits_nV, log_weight_V) - log_z_n1).exp() * ce_weight
    by_kl_nV = ((weighted_nV - log_sum_n1).exp() - p_nV) * kl_weight
    logits_nV.copy_(by_ce_nV + by_kl_nV)
    return log_z_n1, kl_n1 + log_sum_n1 - teacher_log_sum_n1


def _weighted_terms(*tensors: Tensor) -> tuple[Tensor, ...]:
    return _both_terms(*tensors)


def _weighted(exponents_nV: Tensor, log_weight_V: Tensor | None) -> Tensor:
    return exponents_nV if log_weight_V is None else exponents_nV + log_weight_V
