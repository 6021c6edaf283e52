"""What a Distil-xLSTM student is built from: ``[train_student.student]`` of a recipe.

Imports nothing heavy, so that a wrong recipe is refused at once.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal


@dataclass(frozen=True, kw_only=True)
class DistilXLSTMSettings:
    """Settings of the architecture. The defaults are the paper's (arXiv 2503.18565)."""

    kind: Literal["distil_xlstm"] = "distil_xlstm"
    """The architecture, by the ``model_type`` of its config.json."""
    num_blocks: int = 6
    """xLSTM blocks in the stack."""
    slstm_at: tuple[int, ...] = (0, 2, 4)
    """Indices of the sLSTM blocks; the others are mLSTM."""
    num_heads: int = 16
    """Heads of either cell."""
    conv_kernel: int = 4
    """Width of the causal convolution before either cell, in positions."""
    qkv_block_size: int = 32
    """Width of a block of the mLSTM's block-diagonal query, key and value projections."""
    feedforward_factor: float = 1.7
    """Width of the gated GELU feed-forward after an sLSTM, as a multiple of the model's width."""
    mlstm_factor: float = 2.0
    """Inner width of an mLSTM block, as a multiple of the model's width."""
    dropout: float = 0.0
    """Dropout inside the blocks."""
    train_head: bool = False
    """Train the head as well, from the teacher's; it is then no longer tied to the embedding."""
    slstm_backend: Literal["auto", "torch", "triton"] = "auto"
    """The sLSTM's recurrence: PyTorch's loop, or one kernel of Triton's on GPUs. Speed only."""

    weight_keys: ClassVar[tuple[str, ...]] = (
        *("num_blocks", "slstm_at", "num_heads", "conv_kernel", "qkv_block_size"),
        *("feedforward_factor", "mlstm_factor", "train_head"),
    )
    """The settings that weights must share to fit, which a model's config.json holds too."""
    speed_keys: ClassVar[frozenset[str]] = frozenset({"slstm_backend"})
    """The settings that shape no result, and may change when a run is resumed."""
    holds_teacher: ClassVar[bool] = False
    """Of its teacher, a student holds embedding and head alone."""

    @property
    def trains_new_alone(self) -> bool:
        """Whether all that is the teacher's is left as it is."""
        return not self.train_head

    @property
    def extra_packages(self) -> Mapping[str, str]:
        """None: its dependencies are those of the package."""
        return {}

    def __post_init__(self) -> None:
        for key in ("num_blocks", "num_heads", "conv_kernel", "qkv_block_size"):
            _require(1 <= getattr(self, key) < 2**63, key, "from 1 to 2^63 − 1")
        _require(
            list(self.slstm_at) == sorted(set(self.slstm_at))
            and all(0 <= index < self.num_blocks for index in self.slstm_at),
            "slstm_at",
            f"rising block indices below num_blocks = {self.num_blocks}",
        )
        for key in ("feedforward_factor", "mlstm_factor"):
            _require(0.0 < getattr(self, key) <= 1024.0, key, "above 0 and at most 1024")
        for key in ("num_blocks", "conv_kernel"):
            _require(getattr(self, key) <= 4096, key, "at most 4096")
        _require(0.0 <= self.dropout < 1.0, "dropout", "at least 0 and below 1")


def _require(holds: bool, key: str, allowed: str) -> None:
    if not holds:
        raise ValueError(f"{key}: must be {allowed}")
