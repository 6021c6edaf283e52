"""What a validation metric is: it sees the scored positions batch by batch, then gives its values.

To add one, write its class in a file of its own, list it in ``validation`` and, where people are to
see it, label it in ``tracking/metric_labels``.

Shapes: N scored positions, V vocabulary, D width.
"""

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from stages.train_student.data.targets.dense_targets import DenseTargets
from stages.train_student.data.targets.sparse_targets import SparseTargets


@dataclass(frozen=True)
class ScoredPositions:
    """The scored positions of one batch."""

    hidden_ND: Tensor
    """The student's."""
    head_VD: Tensor
    """The student's, without its padding rows."""
    labels_N: Tensor
    targets: SparseTargets | DenseTargets
    """The cache's, whatever the student was trained on."""
    next_logprob_N: Tensor | None
    """The teacher's log-probabilities of the labels, on the host; None where the cache does not
    hold them."""


class ValidationMetric(Protocol):
    """Adds positions up."""

    def add(self, positions: ScoredPositions) -> None:
        """Count the positions of one more batch."""

    def values(self) -> dict[str, float]:
        """Means over all positions; ``validation/NAME`` in ``metrics.jsonl``."""
