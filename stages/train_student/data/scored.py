"""Select the scored positions of a batch, whose label belongs to the same document.

B rows of a batch, T positions, P of all positions scored.
"""

from torch import Tensor

from stages.train_student.data.batch import Batch


def scored(tensor_BTx: Tensor, batch: Batch) -> Tensor:
    """What [B, T, …] holds at the scored positions, [P, …], in the order of ``batch.scored``."""
    # By index: a mask would make the host wait until the device has counted what is set in it.
    return tensor_BTx.flatten(0, 1).index_select(0, batch.scored)
