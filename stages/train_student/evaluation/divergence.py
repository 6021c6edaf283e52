"""Losses of student and teacher on the text, and the student's KL to its teacher.

In: scored positions. Out: mean cross-entropy and KL in nats a position, perplexity, and how often
the student's first choice is the teacher's.
"""

import math

import torch

from stages.train_student.evaluation.validation_metric import ScoredPositions
from stages.train_student.losses.sparse_kl import SparseDistillationLoss
from stages.train_student.losses.vocabulary_pass import VocabularyWeights


class Divergence:
    """``loss``, ``perplexity``, ``kl`` and ``agreement`` of the student."""

    def __init__(self, loss: SparseDistillationLoss, temperature: float) -> None:
        """KL is taken at ``temperature``."""
        self._loss, self._temperature = loss, temperature
        self._sums, self._num_scored = torch.zeros(3, dtype=torch.float64), 0

    def add(self, positions: ScoredPositions) -> None:
        """See ``ValidationMetric``."""
        sums = self._loss(
            positions.hidden_ND,
            positions.head_VD,
            positions.labels_N,
            positions.targets,
            VocabularyWeights(cross_entropy=0.0, kl=1.0, temperature=self._temperature),
        )
        self._sums += torch.stack((sums.cross_entropy, sums.kl, sums.num_agreeing)).cpu()
        self._num_scored += len(positions.labels_N)

    def values(self) -> dict[str, float]:
        """See ``ValidationMetric``."""
        loss, kl, agreement = (self._sums / self._num_scored).tolist()
        return {"loss": loss, "perplexity": _exp(loss), "kl": kl, "agreement": agreement}


class TeacherDivergence:
    """``teacher_loss`` and ``teacher_perplexity``, from what the cache tells of the labels."""

    def __init__(self) -> None:
        self._sum, self._num_scored = torch.zeros((), dtype=torch.float64), 0

    def add(self, positions: ScoredPositions) -> None:
        """See ``ValidationMetric``."""
        self._sum -= positions.next_logprob_N.double().sum()
        self._num_scored += len(positions.next_logprob_N)

    def values(self) -> dict[str, float]:
        """See ``ValidationMetric``."""
        loss = (self._sum / self._num_scored).item()
        return {"teacher_loss": loss, "teacher_perplexity": _exp(loss)}


def _exp(loss: float) -> float:
    return math.exp(loss) if loss < 700 else math.inf
