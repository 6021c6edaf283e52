"""The interface of a loss term: its inputs and outputs.

``FrobeniusTerm`` is one. Cross-entropy and KL, which share one pass over the vocabulary and have
two weights, are an object of their own: ``VocabularyTerms``.

Shapes: B rows, T positions, N scored positions, L layers, D width, V vocabulary.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from stages.train_student.data.batch import Batch
from stages.train_student.data.targets.dense_targets import DenseTargets
from stages.train_student.data.targets.sparse_targets import SparseTargets


@dataclass(frozen=True)
class LossNormalizer:
    """The divisors of a step's sums: its scored positions and its rows, over all processes."""

    num_scored: int
    num_rows: int


class HiddenStateTargets(Protocol):
    """The teacher's hidden states of a batch, whole or projected."""

    def frobenius(self, hidden_BTD: Tensor, is_scored_BT: Tensor) -> Tensor:
        """L_F between them and the student's, over scored positions: a differentiable scalar."""


class LayerTargets(Protocol):
    """The teacher's states of several layers, each by itself."""

    def relative_errors(self, layers_BTD: Sequence[Tensor], batch: Batch) -> Tensor:
        """Squares of the student's differences from them over their own, differentiable [N, L]."""


@dataclass(frozen=True)
class TeacherTargets:
    """What the teacher says of one batch; None for what it does not say or is not asked."""

    distribution: SparseTargets | DenseTargets | None = None
    """Of the next token, at the N scored positions."""
    hidden_states: HiddenStateTargets | None = None
    layers: LayerTargets | None = None


@dataclass(frozen=True)
class TermInputs:
    """What a term is computed from: a batch, the student's outputs and the teacher's targets."""

    batch: Batch
    hidden_BTD: Tensor
    """The student's, after its final norm; the gradient goes there."""
    head_VD: Tensor
    """The student's head without its padding rows."""
    targets: TeacherTargets
    layers_BTD: tuple[Tensor, ...] = ()
    """What the student's layers give of which the teacher's are there, if a term compares them."""


@dataclass(frozen=True)
class TermLoss:
    """A term's share of the loss, and its values as metrics show them."""

    weighted: Tensor
    """Its weight times its value: a differentiable scalar."""
    values: tuple[Tensor, ...]
    """Unweighted scalars, one for each of the term's names."""


class LossTerm(Protocol):
    """One term of the loss."""

    @property
    def names(self) -> tuple[str, ...]:
        """Of its values; ``metrics.jsonl`` has them as ``train/NAME``."""

    def __call__(self, inputs: TermInputs, weight: float, normalizer: LossNormalizer) -> TermLoss:
        """The term of one micro-batch; 0, and not computed, where ``weight`` is 0.

        Summed over the micro-batches of a step, on all processes, it is that of the step.
        """
