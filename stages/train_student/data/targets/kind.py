"""The interface of a target kind in stage two. Each kind is a module, see ``kinds.py``.

R rows of a batch, T positions, P of them scored.
"""

from collections.abc import Callable, Sequence
from typing import Any, Protocol

from torch import Tensor

from cache_format.codec.row_codec import Row
from cache_format.metadata.spec_parts.targets import TargetSpec
from stages.train_student.data.targets.sparse_targets import SparseTargets


class BatchTargets(Protocol):
    """The targets of a batch, in tensors [R, T, …]."""

    def mapped(self, function: Callable[[Tensor], Tensor]) -> "BatchTargets":
        """The same with each tensor as ``function`` returns it."""


class TargetKind(Protocol):
    """One kind of target."""

    KNOWS_PROBABILITIES: bool
    """Whether they say which id the teacher finds likeliest, and how sure it is."""
    KL_NOTE: str
    """What the KL of a student is with such targets, for people."""

    def batch_targets(self, rows: Sequence[Row], spec: TargetSpec) -> BatchTargets:
        """The targets of R rows."""

    def loss_targets(self, targets: Any, scored_P: Tensor, spec: TargetSpec) -> SparseTargets:
        """What the loss takes of ``BatchTargets`` at the scored positions, whose places in [R·T]
        ``scored_P`` holds."""
