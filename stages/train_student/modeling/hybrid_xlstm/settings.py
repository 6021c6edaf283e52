"""What a hybrid student is built from: ``[train_student.student]`` of a recipe.

Imports nothing heavy, so that a wrong recipe is refused at once.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

from stages.train_student.modeling.hybrid_xlstm.pattern import parse_pattern

FeatureMapKind = Literal["two_signed", "one_signed"]
Trained = Literal["new", "mixers", "all", "lora"]


@dataclass(frozen=True, kw_only=True)
class HybridXLSTMSettings:
    """Settings of the architecture. The defaults are the paper's (arXiv 2603.15590)."""

    kind: Literal["hybrid_xlstm"] = "hybrid_xlstm"
    """The architecture, by the ``model_type`` of its config.json."""
    pattern: str = "hybrid"
    """What replaces the attention of each layer: one of hybrid, mlstm, window and attention for
    all layers, or a list for each, such as ``attention,hybrid*26,attention``."""
    window: int = 512
    """Positions that a query sees of its document, its own and those before it."""
    num_sinks: int = 4
    """First positions of a document that a query sees as well, however far away."""
    feature_map: FeatureMapKind = "two_signed"
    """The mLSTM's features of queries and keys: the softmax of a learned projection, of half the
    width for each sign, or of the whole width for one."""
    chunk_length: int | None = None
    """Positions in a chunk of the mLSTM, chosen if not given. Speed only."""
    trained: Trained = "new"
    """What is trained: what the teacher does not have, the whole mixers, everything, or what the
    teacher does not have and adapters of low rank beside each projection of its layers (LoRA,
    through the package peft), which are merged into the weights that are published."""
    lora_rank: int = 256
    """Rank of the adapters, and their α; no other kind of training has any."""
    output_gate_bias: float = -2.0
    """Where the gate between window (0) and mLSTM (1) begins: at σ of this. The window alone is
    close to the teacher; −2 gives it 88%, and lets the mLSTM's gradient through."""
    forget_gate_bias: float = 6.0
    """Where the mLSTM's forget gate begins: 6 halves a key's weight in 280 positions."""
    gradient_checkpointing: bool = False
    """Compute each layer again backward instead of keeping its activations. Speed and memory."""

    weight_keys: ClassVar[tuple[str, ...]] = ("pattern", "window", "num_sinks", "feature_map")
    """The settings that weights must share to fit, which a model's config.json holds too."""
    speed_keys: ClassVar[frozenset[str]] = frozenset({"chunk_length", "gradient_checkpointing"})
    """The settings that shape no result, and may change when a run is resumed."""
    holds_teacher: ClassVar[bool] = True
    """A student holds all of its teacher's weights, and new ones in its mixers."""

    def __post_init__(self) -> None:
        has_new = not {"hybrid", "mlstm"}.isdisjoint(parse_pattern(self.pattern))
        _require(
            has_new or self.trained != "new",
            "trained",
            f'"mixers", "all" or "lora" with the pattern {self.pattern!r}, in which no layer has '
            "an mLSTM",
        )
        _require(1 <= self.lora_rank <= 2**16, "lora_rank", "from 1 to 2^16")
        _require(1 <= self.window <= 2**20, "window", "from 1 to 2^20 positions")
        _require(0 <= self.num_sinks <= 4096, "num_sinks", "from 0 to 4096 positions")
        _require(
            self.chunk_length is None or 1 <= self.chunk_length <= 2**20,
            "chunk_length",
            "from 1 to 2^20 positions",
        )
        for key in ("output_gate_bias", "forget_gate_bias"):
            _require(-100.0 <= getattr(self, key) <= 100.0, key, "from -100 to 100")

    @property
    def train_head(self) -> bool:
        """Whether the head is trained; a frozen one is the teacher's."""
        return self.trained == "all"

    @property
    def trains_new_alone(self) -> bool:
        """Whether all that is the teacher's is left as it is."""
        return self.trained == "new"

    @property
    def extra_packages(self) -> Mapping[str, str]:
        """Packages beside the dependencies that training needs, by the setting that needs them."""
        return {"trained": "peft"} if self.trained == "lora" else {}


def _require(holds: bool, key: str, allowed: str) -> None:
    if not holds:
        raise ValueError(f"{key}: must be {allowed}")
