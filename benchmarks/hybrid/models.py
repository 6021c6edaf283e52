"""The teacher of the hybrid student's benchmark, and the student made from it.

In: sizes, or a model directory. Out: models on the CPU.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from stages.train_student.modeling.hybrid_xlstm.build import build_student
from stages.train_student.modeling.hybrid_xlstm.modeling import HybridXLSTMForCausalLM
from stages.train_student.modeling.hybrid_xlstm.settings import HybridXLSTMSettings


def make_teacher(sizes: Mapping[str, Any]) -> Any:
    """A Transformer of random weights, its feed-forward as wide as Llama's."""
    config = AutoConfig.for_model(
        sizes["family"],
        vocab_size=sizes["vocabulary"],
        hidden_size=sizes["width"],
        intermediate_size=sizes["width"] * 8 // 3,
        num_hidden_layers=sizes["layers"],
        num_attention_heads=sizes["heads"],
        num_key_value_heads=sizes["groups"],
        head_dim=sizes["width"] // sizes["heads"],
        max_position_embeddings=2**15,
        **({"sliding_window": None} if sizes["family"] == "mistral" else {}),
        **dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id")),
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        auto: Any = AutoModelForCausalLM
        return auto.from_config(config, dtype=torch.float32).eval()


def read_teacher(directory: Path) -> Any:
    """The model of ``directory``, in float32; no code of it is run. Raises FileNotFoundError."""
    if not directory.is_dir():
        raise FileNotFoundError(f"{directory}: no such directory")
    auto: Any = AutoModelForCausalLM
    model = auto.from_pretrained(
        directory, dtype=torch.float32, use_safetensors=True, local_files_only=True
    )
    return model.eval()


def convert(teacher: Any, settings: HybridXLSTMSettings) -> HybridXLSTMForCausalLM:
    """The untrained student; weights that are not trained are the teacher's own tensors."""
    return build_student(
        settings,
        teacher_config=teacher.config.to_dict(),
        weights=teacher.state_dict().items(),
        vocab_size=teacher.config.vocab_size,
        eos_token_id=None,
        seed=0,
    )


@dataclass(frozen=True)
class Place:
    """Where models run, and in which precision."""

    device: torch.device
    dtype: torch.dtype
    """Of all numbers when text is read or generated; when a student is trained, of products."""

    def of_generation(self, model: Any) -> Any:
        """The same model there, in that precision."""
        return model.to(self.device, self.dtype).eval()

    def autocast(self) -> Any:
        """A context for the steps of a training."""
        enabled = self.dtype != torch.float32
        return torch.autocast(self.device.type, self.dtype, enabled=enabled)
