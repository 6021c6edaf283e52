"""The interface of a target kind in stage two. Each kind is a module, see ``kinds.py``.

R rows of a batch, T positions, P of them scored, V vocabulary, D width.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from cache_format.codec.row_codec import Row
from cache_format.metadata.spec_parts.targets import TargetSpec
from cache_format.reader import Cache
from stages.train_student.data.targets.dense_targets import DenseTargets
from stages.train_student.data.targets.sparse_targets import SparseTargets


class BatchTargets(Protocol):
    """The targets of a batch, in tensors [R, T, …]."""

    def mapped(self, function: Callable[[Tensor], Tensor]) -> "BatchTargets":
        """The same with each tensor as ``function`` returns it."""


TargetDecoder = Callable[[Any, Tensor], SparseTargets | DenseTargets]
"""What the loss takes of ``BatchTargets`` at the scored positions, whose places in [R·T] the second
argument holds, in their order."""


@dataclass(frozen=True)
class HeadOnDevice:
    """Where a teacher's head is wanted, should a kind need it."""

    device: torch.device
    dtype: torch.dtype
    """That it multiplies in."""
    frozen_VD: Tensor | None = None
    """The student's head, if it is frozen and there: the teacher's is mostly the same."""

    def place(self, head_VD: Tensor) -> Tensor:
        """The teacher's head there, in that precision; not a second time if the student has it."""
        placed_VD = head_VD.to(self.device, self.dtype)
        if self.frozen_VD is not None and torch.equal(placed_VD, self.frozen_VD):
            return self.frozen_VD
        return placed_VD


class TargetKind(Protocol):
    """One kind of target."""

    KNOWS_PROBABILITIES: bool
    """Whether they say which id the teacher finds likeliest, and how sure it is."""
    KL_NOTE: str
    """What the KL of a student is with such targets, for people."""

    def batch_targets(self, rows: Sequence[Row], spec: TargetSpec) -> BatchTargets:
        """The targets of R rows."""

    def make_decoder(self, cache: Cache, head: HeadOnDevice) -> TargetDecoder:
        """What turns the targets of a cache's batches into those of the loss."""
