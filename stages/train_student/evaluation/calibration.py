"""Accuracy and calibration: how often a model's top-1 is correct, and how well its confidence fits.

In: probability and correctness of the first choice at every scored position. Out: accuracy and the
expected calibration error: the mean over positions of |accuracy − mean confidence| of the bin that
a position's confidence falls into, of 15 bins of equal width (Guo et al., arXiv 1706.04599, eq. 3).

Shapes: N scored positions, V vocabulary, D width.
"""

import torch
from torch import Tensor

from stages.compute.matmul import product
from stages.train_student.data.targets.dense_targets import DenseTargets
from stages.train_student.evaluation.validation_metric import ScoredPositions

_NUM_BINS = 15


class Calibration:
    """Adds positions up, in float64."""

    def __init__(self) -> None:
        self._sums = torch.zeros(3, _NUM_BINS, dtype=torch.float64)

    def add(self, confidence_N: Tensor, is_right_N: Tensor) -> None:
        """Count positions whose first choice has probability ``confidence_N``."""
        confidence_N, is_right_N = confidence_N.double().cpu(), is_right_N.double().cpu()
        # A bin holds its upper edge, so that certainty falls into the last one.
        bins_N = (confidence_N * _NUM_BINS).ceil().long().sub(1).clamp(0, _NUM_BINS - 1)
        for row, values_N in enumerate((torch.ones_like(confidence_N), confidence_N, is_right_N)):
            self._sums[row].index_add_(0, bins_N, values_N)

    def merge(self, other: "Calibration") -> None:
        """Count the positions of ``other`` as well."""
        self._sums += other._sums

    @property
    def accuracy(self) -> float:
        """Share of positions whose first choice is right."""
        return float(self._sums[2].sum() / self._sums[0].sum())

    @property
    def error(self) -> float:
        """The expected calibration error."""
        _, confidence, right = self._sums
        return float((right - confidence).abs().sum() / self._sums[0].sum())


class StudentCalibration:
    """``accuracy`` and ``ece`` of the student."""

    def __init__(self, chunk: int) -> None:
        """``chunk`` positions have logits at once."""
        self._chunk, self._calibration = chunk, Calibration()

    def add(self, positions: ScoredPositions) -> None:
        """See ``ValidationMetric``."""
        confidence_N, choice_N = first_choices(positions.hidden_ND, positions.head_VD, self._chunk)
        self._calibration.add(confidence_N, choice_N == positions.labels_N)

    def merge(self, other: "StudentCalibration") -> None:
        """See ``ValidationMetric``."""
        self._calibration.merge(other._calibration)

    def values(self) -> dict[str, float]:
        """See ``ValidationMetric``."""
        return {"accuracy": self._calibration.accuracy, "ece": self._calibration.error}


class TeacherCalibration:
    """``teacher_accuracy`` and ``teacher_ece``, from the likeliest id of each position.

    A cache of samples cannot tell: the id drawn most need not be the likeliest, nor do its draws
    say how likely it is.
    """

    def __init__(self, chunk: int) -> None:
        """``chunk`` positions have logits at once, where there are any."""
        self._chunk, self._calibration = chunk, Calibration()

    def add(self, positions: ScoredPositions) -> None:
        """See ``ValidationMetric``."""
        targets = positions.targets
        if isinstance(targets, DenseTargets):
            confidence_N, choice_N = targets.first_choices(self._chunk)
        else:
            confidence_N = targets.logprobs(1.0)[0][:, 0].exp()
            choice_N = targets.kept_ids_NK[:, 0]
        self._calibration.add(confidence_N, choice_N == positions.labels_N)

    def merge(self, other: "TeacherCalibration") -> None:
        """See ``ValidationMetric``."""
        self._calibration.merge(other._calibration)

    def values(self) -> dict[str, float]:
        """See ``ValidationMetric``."""
        found = self._calibration
        return {"teacher_accuracy": found.accuracy, "teacher_ece": found.error}


def first_choices(hidden_ND: Tensor, head_VD: Tensor, chunk: int) -> tuple[Tensor, Tensor]:
    """Probability and id of the likeliest token at every position, ``chunk`` of them at a time."""
    with torch.autocast(hidden_ND.device.type, enabled=False):
        parts = [_first_choice(part, head_VD) for part in torch.split(hidden_ND, chunk)]
    confidences, ids = zip(*parts, strict=True)
    return torch.cat(confidences), torch.cat(ids)


def _first_choice(hidden_nD: Tensor, head_VD: Tensor) -> tuple[Tensor, Tensor]:
    logits_nV = product(hidden_nD, head_VD.T)
    largest_n, ids_n = logits_nV.max(1)
    return (largest_n - logits_nV.logsumexp(1)).exp(), ids_n
