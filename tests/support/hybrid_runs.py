"""A Llama teacher, its cache and settings of a hybrid student, small enough for a test."""

from dataclasses import fields
from pathlib import Path
from typing import Any

import torch

from stages.train_student.config import TrainStudentConfig
from stages.train_student.modeling.hybrid_xlstm.settings import HybridXLSTMSettings
from tests.support.tiny import (
    save_tiny_tokenizer,
    tiny_cache_config,
    tiny_texts,
    write_fineweb_parquet,
)

NEW = ("feature_q", "feature_k", "input_gate", "forget_gate", "output_gate")
"""Parts of a mixer that the teacher does not have."""


def save_tiny_llama(
    directory: Path, *, seed: int = 0, dtype: torch.dtype = torch.float32, **changes: Any
) -> Path:
    """Save a Llama of width 32 and 3 layers with its tokenizer; ``changes`` go into its config."""
    from transformers import LlamaConfig, LlamaForCausalLM

    settings: dict[str, Any] = {
        "vocab_size": save_tiny_tokenizer(directory) + 8,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 128,
        "initializer_range": 0.3,  # the default would make every distribution flat
        "tie_word_embeddings": False,
        "bos_token_id": None,
        "eos_token_id": 0,
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model: Any = LlamaForCausalLM(LlamaConfig(**(settings | changes)))
    model.to(dtype).save_pretrained(directory)
    return directory


def hybrid_cache(root: Path, *, keep_teacher_weights: bool = True, **changes: Any) -> Path:
    """A finished cache at ``root/cache``, its teacher, a Llama, at ``root/teacher``."""
    from stages.cache_teacher.run import cache_teacher

    teacher = root / "teacher"
    if not teacher.exists():
        save_tiny_llama(teacher)
    corpus = write_fineweb_parquet(root / "corpus.parquet", tiny_texts(80))
    out = root / ("cache" if keep_teacher_weights else "bare")
    settings = {"hidden_projection": "none", "keep_teacher_weights": keep_teacher_weights}
    cache_teacher(
        tiny_cache_config(teacher, corpus, **(settings | changes)),
        out,
        recipe_toml="# tiny\n",
        report=lambda _: None,
    )
    return out


def align_config(**changes: Any) -> TrainStudentConfig:
    """An alignment; ``changes`` with the name of a student's setting go into that."""
    return _config({"objective": "alignment", "learning_rate": 1e-2}, changes)


def distill_config(**changes: Any) -> TrainStudentConfig:
    """A distillation of the whole student; see ``align_config``."""
    distillation = {
        **{"alpha_start": 0.5, "alpha_end": 0.5, "beta_start": 0.0, "beta_end": 0.0},
        **{"temperature_start": 1.0, "trained": "all", "learning_rate": 1e-3},
    }
    return _config(distillation, changes)


def lora_config(**changes: Any) -> TrainStudentConfig:
    """A distillation through adapters of rank 2; see ``align_config``."""
    return distill_config(**({"trained": "lora", "lora_rank": 2, "learning_rate": 1e-2} | changes))


_STUDENT = {field.name for field in fields(HybridXLSTMSettings)}


def _config(own: dict[str, Any], changes: dict[str, Any]) -> TrainStudentConfig:
    settings: dict[str, Any] = {
        **{"window": 6, "num_sinks": 2},
        **{"batch_size": 2, "gradient_accumulation_steps": 2, "max_steps": 9},
        **{"precision": "fp32", "loss_chunk": 40, "compile": "off", "report_to": ()},
        **{"logging_steps": 1, "eval_steps": 4, "validation_rows": 6, "save_steps": 3},
        **own,
        **changes,
    }
    student = {key: value for key, value in settings.items() if key in _STUDENT}
    others = {key: value for key, value in settings.items() if key not in _STUDENT}
    return TrainStudentConfig(student=HybridXLSTMSettings(**student), **others)
