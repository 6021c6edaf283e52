"""Layouts of packed rows, and what a layer does with memory, for tests of single layers."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from stages.train_student.modeling.layers.document_masks import DocumentLayout, lay_out_documents

Start = tuple[int, int]
"""Row and position at which a document begins."""


def layout_of(
    batch: int, num_positions: int, *starts: Start, has_state: bool = False
) -> DocumentLayout:
    is_start = torch.zeros(batch, num_positions, dtype=torch.bool)
    for row, position in starts:
        is_start[row, position] = True
    return lay_out_documents(is_start, torch.empty(batch, num_positions, 1), 1, has_state)


def layout_of_part(batch: int, first: int, stop: int, *starts: Start) -> DocumentLayout:
    """Of positions ``first`` to ``stop`` of rows in which documents begin at ``starts``."""
    here = [(row, at - first) for row, at in starts if first <= at < stop]
    return layout_of(batch, stop - first, *here, has_state=True)


def document_indices(batch: int, num_positions: int, *starts: Start) -> Tensor:
    """The number of each position's document within its row [B, T]."""
    index_BT = torch.zeros(batch, num_positions, dtype=torch.long)
    for row, position in starts:
        index_BT[row, position:] += 1
    return index_BT


def gradients(outputs: Tensor, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Of a sum of outputs with different weights."""
    weights = torch.linspace(-1, 1, outputs.numel(), dtype=torch.float64).view(outputs.shape)
    return torch.autograd.grad((outputs * weights.to(outputs.dtype)).sum(), inputs)


def saved_bytes(forward: Callable[[], object]) -> int:
    """What ``forward`` keeps for its backward, each storage counted once."""
    sizes: dict[int, int] = {}
    kept: list[Tensor] = []  # so that no storage is freed and its address taken again

    def pack(tensor: Tensor) -> Tensor:
        kept.append(tensor)
        sizes[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        forward()
    return sum(sizes.values())


def largest_tensor(call: Callable[[], object]) -> int:
    """Numbers in the largest tensor that ``call`` makes, in forward and backward."""
    from torch.utils._python_dispatch import TorchDispatchMode
    from torch.utils._pytree import tree_leaves

    class Sizes(TorchDispatchMode):  # type: ignore[no-untyped-call]
        largest: int = 0

        def __torch_dispatch__(
            self, func: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            result = func(*args, **(kwargs or {}))
            for leaf in tree_leaves(result):
                if isinstance(leaf, Tensor):
                    self.largest = max(self.largest, leaf.numel())
            return result

    with Sizes() as sizes:  # type: ignore[no-untyped-call]
        call()
    largest: int = sizes.largest
    return largest
