"""Tiny random teachers of every family, hybrid students of them, and ids for both."""

from typing import Any

import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM

from stages.train_student.modeling.hybrid_xlstm import auto_classes  # noqa: F401 (registers them)
from stages.train_student.modeling.hybrid_xlstm.build import build_student
from stages.train_student.modeling.hybrid_xlstm.pattern import parse_pattern
from stages.train_student.modeling.hybrid_xlstm.settings import HybridXLSTMSettings

VOCAB, ROWS, EOS = 90, 97, 3
_SIZES = {
    "vocab_size": ROWS,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "pad_token_id": None,
    "bos_token_id": None,
    "eos_token_id": None,
}
_LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
_YARN = {
    "rope_type": "yarn",
    "rope_theta": 1000.0,
    "factor": 4.0,
    "original_max_position_embeddings": 128,
}
TEACHERS: dict[str, dict[str, Any]] = {
    "llama": {"model_type": "llama", "rope_parameters": _LLAMA3},
    "llama with biases": {
        "model_type": "llama",
        "attention_bias": True,
        "mlp_bias": True,
        "head_dim": 16,
        "rope_parameters": {"rope_type": "linear", "rope_theta": 1000.0, "factor": 2.0},
    },
    "mistral": {"model_type": "mistral", "sliding_window": None},
    "olmo2": {"model_type": "olmo2"},
    "qwen2": {"model_type": "qwen2", "tie_word_embeddings": True},
    "qwen3": {"model_type": "qwen3", "head_dim": 16, "rope_parameters": _YARN},
}
"""A teacher of each family; together they have every kind of rotation, bias and norm."""


def teacher_config(name: str, **changes: Any) -> dict[str, Any]:
    """A config.json of the teacher ``name``."""
    return _SIZES | TEACHERS[name] | changes


def make_teacher(name: str, dtype: torch.dtype = torch.float32, **changes: Any) -> Any:
    """A teacher whose every weight matters."""
    fields = teacher_config(name, **changes)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(4)
        config = AutoConfig.for_model(fields.pop("model_type"), **fields)
        auto: Any = AutoModelForCausalLM
        teacher = auto.from_config(config, attn_implementation="eager")
        with torch.no_grad():
            for parameter in teacher.parameters():
                parameter.add_(torch.randn(parameter.shape) * 0.15)
    return teacher.to(dtype).eval()


def make_hybrid(teacher: Any, *, seed: int = 0, **settings: Any) -> Any:
    """An untrained student of ``teacher``."""
    if not {"hybrid", "mlstm"} & set(parse_pattern(settings.get("pattern", "hybrid"))):
        settings.setdefault("trained", "mixers")  # there is nothing new to train
    student: Any = build_student(
        HybridXLSTMSettings(**settings),
        teacher_config=teacher.config.to_dict(),
        weights=teacher.state_dict().items(),
        vocab_size=VOCAB,
        eos_token_id=EOS,
        seed=seed,
    )
    return student.eval()


def make_noisy_hybrid(teacher: Any, **settings: Any) -> Any:
    """A student whose gates depend on their input, and let both branches through."""
    student = make_hybrid(teacher, output_gate_bias=0.0, forget_gate_bias=2.0, **settings)
    generator = torch.Generator().manual_seed(6)
    with torch.no_grad():
        for name in student.new_parameters():
            parameter = student.get_parameter(name)
            noise = torch.randn(parameter.shape, generator=generator) * 0.4
            parameter.add_(noise.to(parameter.dtype))
    return student


def make_ids(batch: int, num_positions: int, seed: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(VOCAB, (batch, num_positions), generator=generator)


def starts(batch: int, num_positions: int, *row_and_position: tuple[int, int]) -> Tensor:
    """Marks of documents' first positions."""
    is_start = torch.zeros(batch, num_positions, dtype=torch.bool)
    for row, position in row_and_position:
        is_start[row, position] = True
    return is_start
