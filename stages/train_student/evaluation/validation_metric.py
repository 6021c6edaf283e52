"""What a validation metric is: it sees the scored positions batch by batch, then gives its values.

To add one, write its class in a file of its own, list it in ``validation`` and, where people are to
see it, label it in ``tracking/metric_labels``.

Shapes: N scored positions, V vocabulary, D width.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor

from stages.train_student.data.targets.dense_targets import DenseTargets
from stages.train_student.data.targets.sparse_targets import SparseTargets


@dataclass(frozen=True, kw_only=True)
class LayerFigures:
    """Of the layers of a student that holds its teacher, over all positions of one batch."""

    errors: Mapping[int, Tensor]
    """How far each layer is from the teacher's, by its index: a scalar, summed over positions (see
    ``losses.alignment``). None where they are not compared."""
    gates: Mapping[int, Tensor]
    """The gate between window (0) and mLSTM (1) by layer, of every position and head."""
    num_positions: int


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
    layers: LayerFigures | None = None
    """None of a student that does not hold its teacher."""


class ValidationMetric(Protocol):
    """Adds positions up."""

    def add(self, positions: ScoredPositions) -> None:
        """Count the positions of one more batch."""

    def merge(self, other: Any) -> None:
        """Count all positions that ``other``, a metric of the same class, has counted."""

    def values(self) -> dict[str, float]:
        """Means over all positions; ``validation/NAME`` in ``metrics.jsonl``.

        None of what no batch told."""
