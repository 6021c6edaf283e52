"""What tests look at in a batch."""

from collections.abc import Iterator

from torch import Tensor

from stages.train_student.data.batch import Batch
from stages.train_student.data.targets.ids import IdTargets


def ids_of(batch: Batch) -> IdTargets:
    """Its targets, which name ids."""
    assert isinstance(batch.targets, IdTargets)
    return batch.targets


def tensors_of(batch: Batch) -> Iterator[tuple[str, Tensor]]:
    """Name and tensor of everything in it; what it does not have is left out."""
    nested = [("", batch), ("targets.", batch.targets)]
    samples = ids_of(batch).samples
    if samples is not None:
        nested.append(("targets.samples.", samples))
    for prefix, part in nested:
        for name, value in vars(part).items():
            if isinstance(value, Tensor):
                yield prefix + name, value
