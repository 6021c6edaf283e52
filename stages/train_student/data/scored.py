"""Select the scored positions of a batch, whose label belongs to the same document.

B rows of a batch, T positions, P of all positions scored.
"""

from torch import Tensor

from cache_format.metadata.spec_parts.targets import TargetSpec
from stages.train_student.data.batch import Batch
from stages.train_student.data.targets.kinds import kind_of
from stages.train_student.data.targets.sparse_targets import SparseTargets


def scored_targets(batch: Batch, spec: TargetSpec) -> SparseTargets:
    """The targets of the scored positions, in the order of ``batch.scored``."""
    return kind_of(spec).loss_targets(batch.targets, batch.scored, spec)


def scored(tensor_BTx: Tensor, batch: Batch) -> Tensor:
    """What [B, T, …] holds at the scored positions, [P, …], in the order of ``batch.scored``."""
    # By index: a mask would make the host wait until the device has counted what is set in it.
    return tensor_BTx.flatten(0, 1).index_select(0, batch.scored)
