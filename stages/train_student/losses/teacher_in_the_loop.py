"""The teacher in the loop, as stage two sees it; there to be compared with, never to be needed.

In: a batch's ids and document starts. Out: the teacher's hidden states at every position. Called by
``objective`` in place of the cache's targets. The stages do not know each other, so what stands
behind this comes from outside.

B rows, T positions, V vocabulary, D width.
"""

from collections.abc import Callable
from typing import NamedTuple, Protocol

import torch
from torch import Tensor


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
