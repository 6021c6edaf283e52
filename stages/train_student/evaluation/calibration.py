"""How often a model's first choice is right, and whether it is as sure of it as it should be.

In: probability and correctness of the first choice at every scored position. Out: accuracy and the
expected calibration error: the mean over positions of |accuracy − mean confidence| of the bin that
a position's confidence falls into, of 15 bins of equal width (Guo et al., arXiv 1706.04599, eq. 3).

Shapes: N scored positions, V vocabulary, D width.
"""

import torch
from torch import Tensor

from stages.compute.matmul import product

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

    @property
    def accuracy(self) -> float:
        """Share of positions whose first choice is right."""
        return float(self._sums[2].sum() / self._sums[0].sum())

    @property
    def error(self) -> float:
        """The expected calibration error."""
        _, confidence, right = self._sums
        return float((right - confidence).abs().sum() / self._sums[0].sum())


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
