"""Losses of student and teacher on the text, and the student's KL to its teacher.

In: scored positions. Out: mean cross-entropy and KL in nats a position, perplexity, and how often
the student's first choice is the teacher's.
"""

import math

import torch

from stages.train_student.data.targets.dense_targets import DenseTargets
from stages.train_student.evaluation.validation_metric import ScoredPositions
from stages.train_student.losses.vocabulary_pass import VocabularyWeights
from stages.train_student.losses.vocabulary_terms import VocabularyTerms


class Divergence:
    """``loss``, ``perplexity``, ``kl`` and ``agreement`` of the student."""

    def __init__(self, vocabulary: VocabularyTerms, temperature: float) -> None:
        """KL is taken at ``temperature``."""
        self._vocabulary, self._temperature = vocabulary, temperature
        self._sums, self._num_scored = torch.zeros(3, dtype=torch.float64), 0

    def add(self, positions: ScoredPositions) -> None:
        """See ``ValidationMetric``."""
        sums = self._vocabulary.sums(
            positions.hidden_ND,
            positions.head_VD,
            positions.labels_N,
            positions.targets,
            VocabularyWeights(cross_entropy=0.0, kl=1.0, temperature=self._temperature),
        )
        self._sums += torch.stack((sums.cross_entropy, sums.kl, sums.num_agreeing)).cpu()
        self._num_scored += len(positions.labels_N)

    def merge(self, other: "Divergence") -> None:
        """See ``ValidationMetric``."""
        self._sums += other._sums
        self._num_scored += other._num_scored

    @property
    def sums(self) -> list[float]:
        """Over the positions until now: cross-entropy, KL, and how many first choices agree."""
        return self._sums.tolist()

    def values(self) -> dict[str, float]:
        """See ``ValidationMetric``."""
        loss, kl, agreement = (self._sums / self._num_scored).tolist()
        return {"loss": loss, "perplexity": _exp(loss), "kl": kl, "agreement": agreement}


class TeacherDivergence:
    """``teacher_loss`` and ``teacher_perplexity``, from what the cache tells of the labels."""

    def __init__(self, chunk: int) -> None:
        """``chunk`` positions have logits at once, where there are any."""
        self._chunk = chunk
        self._sum, self._num_scored = torch.zeros((), dtype=torch.float64), 0

    def add(self, positions: ScoredPositions) -> None:
        """See ``ValidationMetric``."""
        logprobs_N, targets = positions.next_logprob_N, positions.targets
        if logprobs_N is None:
            assert isinstance(targets, DenseTargets), "kinds that keep ids hold the labels'"
            logprobs_N = targets.label_logprobs(positions.labels_N, self._chunk)
        self._sum -= logprobs_N.double().sum().cpu()
        self._num_scored += len(logprobs_N)

    def merge(self, other: "TeacherDivergence") -> None:
        """See ``ValidationMetric``."""
        self._sum += other._sum
        self._num_scored += other._num_scored

    def values(self) -> dict[str, float]:
        """See ``ValidationMetric``."""
        loss = (self._sum / self._num_scored).item()
        return {"teacher_loss": loss, "teacher_perplexity": _exp(loss)}


def _exp(loss: float) -> float:
    return math.exp(loss) if loss < 700 else math.inf
