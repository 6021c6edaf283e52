"""How well a device is used: the share of time it waited, and of its arithmetic it did (MFU).

In: the seconds that forward passes kept it busy, and the teacher's shape. Out: two ratios. Called
by ``make`` and ``progress``.

A device is taken to be busy with a forward pass, targets included, from when the host begins to
launch it, or the pass before is done, until it is done itself. So the share waited is the time in
which there was no pass to do: documents were not ready, or rows not taken off. Where the host
launches operations more slowly than the device does them, the gaps within a pass count as busy; MFU
shows them.

MFU (Chowdhery et al. 2022, appendix B) counts the operations that the model's definition needs, not
those that were done: 2 for each weight that a token meets, and of attention only the pairs that a
document has. D width, L layers.
"""

import json
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from stages.cache_teacher.corpus.packing import PackedUnit


@dataclass(frozen=True, kw_only=True)
class DeviceUse:
    """What a device has done for a run."""

    busy_seconds: float = 0.0
    """In forward passes, gaps within them included."""
    num_tokens: int = 0
    """Positions of those."""
    num_operations: float = 0.0
    """Those that the model's definition needs; 0 where they are not known."""

    def __add__(self, other: "DeviceUse") -> "DeviceUse":
        return DeviceUse(
            busy_seconds=self.busy_seconds + other.busy_seconds,
            num_tokens=self.num_tokens + other.num_tokens,
            num_operations=self.num_operations + other.num_operations,
        )

    def __sub__(self, other: "DeviceUse") -> "DeviceUse":
        return DeviceUse(
            busy_seconds=self.busy_seconds - other.busy_seconds,
            num_tokens=self.num_tokens - other.num_tokens,
            num_operations=self.num_operations - other.num_operations,
        )

    def wait_share(self, seconds: float) -> float:
        """The share of ``seconds`` in which the device was at no forward pass."""
        return min(1.0, max(0.0, 1 - self.busy_seconds / seconds)) if seconds > 0 else 0.0


@dataclass(frozen=True, kw_only=True)
class ModelOperations:
    """Operations of one forward pass: those of any token, and those of a pair in attention."""

    per_token: float
    per_pair: float

    def of(self, batch: PackedUnit) -> float:
        """Those of ``batch``, of which each position attends to its document up to itself."""
        num_rows, num_ids = batch.token_ids_RT.shape
        num_pairs = 0
        for starts in batch.document_starts:
            lengths = np.diff([0, *starts[starts < num_ids - 1].tolist(), num_ids - 1])
            num_pairs += int((lengths * (lengths + 1) // 2).sum())
        num_tokens = int(num_rows * (num_ids - 1))
        return self.per_token * num_tokens + self.per_pair * num_pairs


def model_operations(directory: Path) -> ModelOperations | None:
    """The operations of the model in ``directory``, from its files; None for mixtures of experts.

    A token meets every weight once but the embedding's, and the head's also where it is the
    embedding. A pair costs a product for its score and one for its value, 2 operations for each
    dimension of each head.
    """
    from safetensors import safe_open
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(directory, trust_remote_code=False).get_text_config()
    if any("expert" in key for key in json.loads(config.to_json_string())):
        return None
    num_weights = 0
    for path in directory.glob("*.safetensors"):
        with safe_open(path, framework="np") as file:
            for name in file.keys():  # noqa: SIM118  (no mapping)
                num_weights += math.prod(file.get_slice(name).get_shape())
    num_embedded = config.vocab_size * config.hidden_size
    if config.tie_word_embeddings:
        num_embedded = 0  # it is looked up once and multiplied with once
    heads = config.num_attention_heads
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // heads
    return ModelOperations(
        per_token=2.0 * (num_weights - num_embedded),
        per_pair=4.0 * config.num_hidden_layers * heads * head_dim,
    )
