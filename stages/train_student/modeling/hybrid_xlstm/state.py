"""What generation carries from one call to the next: of constant size but for ``attention`` layers.

Shapes: B batch. Every tensor of a state has the rows of the batch first.
"""

from typing import Any, NamedTuple

from torch import Tensor

from stages.train_student.modeling.hybrid_xlstm.full_attention import KeyValueCache
from stages.train_student.modeling.layers.normalized_mlstm import MemoryState
from stages.train_student.modeling.layers.sliding_window import WindowState


class MixerState(NamedTuple):
    """State of one layer; what its mixer does not have is absent."""

    memory: MemoryState | None = None
    window: WindowState | None = None
    cache: KeyValueCache | None = None


class HybridState(NamedTuple):
    """``position_B``: how many positions each row's document has had, which rotation goes by."""

    position_B: Tensor
    layers: tuple[MixerState, ...]

    def rows(self, indices: Tensor) -> "HybridState":
        """The state of the batch rows ``indices``, in that order."""
        found: HybridState = _rows(self, indices)
        return found


def _rows(part: Any, indices: Tensor) -> Any:
    if isinstance(part, Tensor):
        return part.index_select(0, indices)
    if isinstance(part, tuple):
        chosen = [_rows(one, indices) for one in part]
        return type(part)(*chosen) if hasattr(part, "_fields") else tuple(chosen)
    return part
