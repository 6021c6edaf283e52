"""The source of the teacher's predictions: the cache, or the teacher in the loop.

In: a batch and the weights of its step. Out: ``TeacherTargets``. A run chooses its signal once. The
teacher in the loop is there to be compared with, never to be needed; the stages do not know each
other, so what stands behind ``OnlineTeacher`` comes from outside.

B rows, T positions, V vocabulary, D width.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from cache_format.metadata.spec import CacheSpec
from stages.train_student.data.batch import Batch
from stages.train_student.data.scored import scored
from stages.train_student.data.targets.dense_targets import DenseTargets
from stages.train_student.data.targets.kind import TargetDecoder
from stages.train_student.losses.loss_term import TeacherTargets
from stages.train_student.losses.states.frobenius import ProjectedStates, WholeStates
from stages.train_student.losses.states.layers import ProjectedLayers
from stages.train_student.losses.terms import LossWeights


class TeacherStates(NamedTuple):
    """What the teacher makes of a batch, without gradients."""

    last_BTD: Tensor
    """What the head is applied to."""
    mean_BTD: Tensor | None
    """Mean over the layers that the cache's sketch is of; None where no Frobenius term asks."""


class OnlineTeacher(Protocol):
    """A teacher that is asked at every step."""

    @property
    def head_VD(self) -> Tensor:
        """The rows of its head that stand for ids, in the precision that they multiply in."""

    def states(self, input_ids: Tensor, is_document_start: Tensor) -> TeacherStates:
        """Of int64 and bool [B, T]. Documents do not see each other; index 0 begins one."""


LoadTeacher = Callable[[torch.device], OnlineTeacher]
"""Loads it on a run's device, which is known only when the run has begun."""


class TeacherSignal(Protocol):
    """What a run learns from."""

    @property
    def reads_hidden_states(self) -> bool:
        """Whether hidden states come from the batch, which must then have been read with them."""

    def targets(self, batch: Batch, weights: LossWeights) -> TeacherTargets:
        """What the teacher says of ``batch``, as far as ``weights`` ask for it."""


@dataclass(frozen=True)
class CachedSignal:
    """The targets and projected hidden states that the batch was read with."""

    spec: CacheSpec
    decode: TargetDecoder

    @property
    def reads_hidden_states(self) -> bool:
        """Hidden states are columns of the cache."""
        return True

    def targets(self, batch: Batch, weights: LossWeights) -> TeacherTargets:
        """See ``TeacherSignal``."""
        distribution = None
        if weights.reads_distribution:
            distribution = self.decode(batch.targets, batch.scored)
        if batch.sketch is None or batch.projection is None:
            return TeacherTargets(distribution)
        sketch = self.spec.sketch
        scale = 1.0 if sketch.kind == "pca" else 1 / math.sqrt(sketch.dim)
        return TeacherTargets(
            distribution,
            ProjectedStates(batch.sketch[:, :, 0], batch.projection, scale),
            ProjectedLayers(batch.sketch, batch.projection, scale),
        )


@dataclass(frozen=True)
class OnlineSignal:
    """The whole distribution and the whole hidden states, from a teacher that sees the batch."""

    teacher: OnlineTeacher

    @property
    def reads_hidden_states(self) -> bool:
        """The teacher gives them."""
        return False

    def targets(self, batch: Batch, weights: LossWeights) -> TeacherTargets:
        """See ``TeacherSignal``. Labels alone do not ask the teacher."""
        if not weights.uses_teacher:
            return TeacherTargets()
        states = self.teacher.states(batch.input_ids, batch.is_document_start)
        distribution = None
        if weights.reads_distribution:
            distribution = DenseTargets(scored(states.last_BTD, batch), self.teacher.head_VD)
        mean = None if states.mean_BTD is None else WholeStates(states.mean_BTD)
        return TeacherTargets(distribution, mean)
