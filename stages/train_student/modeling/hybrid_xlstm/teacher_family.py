"""The teachers that a hybrid student can be made from, and what is kept of their config.json.

In: a teacher's config.json. Out: the few fields that its layers are built from, which the
student's own config.json holds, and transformers' class for them. Only families listed here are
made, so a config.json cannot choose any other code.
"""

from collections.abc import Mapping
from typing import Any

from transformers import (
    LlamaConfig,
    LlamaModel,
    MistralConfig,
    MistralModel,
    Olmo2Config,
    Olmo2Model,
    PretrainedConfig,
    PreTrainedModel,
    Qwen2Config,
    Qwen2Model,
    Qwen3Config,
    Qwen3Model,
)

FAMILIES: dict[str, tuple[type[PretrainedConfig], type[PreTrainedModel]]] = {
    "llama": (LlamaConfig, LlamaModel),
    "mistral": (MistralConfig, MistralModel),
    "olmo2": (Olmo2Config, Olmo2Model),
    "qwen2": (Qwen2Config, Qwen2Model),
    "qwen3": (Qwen3Config, Qwen3Model),
}
"""Config and base model by ``model_type``. All have rotary positions, gated feed-forwards, RMS
norms, and parameters of the same names."""

SIZES = (
    *("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers"),
    *("num_attention_heads", "num_key_value_heads", "head_dim", "max_position_embeddings"),
)
FLAGS = ("attention_bias", "mlp_bias", "tie_word_embeddings")
OTHERS = ("hidden_act", "rms_norm_eps", "rope_parameters", "model_type")
ACTIVATIONS = ("silu", "gelu", "gelu_new", "gelu_pytorch_tanh", "relu", "relu2")
ROPE_TYPES = ("default", "linear", "llama3", "yarn")
"""Those whose angles depend on the position alone, not on the length of the row."""

_STEP = "Choose a teacher without it."
_DOWNLOAD = "Download the teacher again, or choose another."


def teacher_fields(config: Mapping[str, Any]) -> dict[str, Any]:
    """What a student keeps of its teacher's config.json.

    Raises ValueError, naming the field, where the teacher is not of a known family or computes
    what a hybrid student does not.
    """
    model_type = config.get("model_type")
    if model_type not in FAMILIES:
        raise ValueError(
            f"teacher: a hybrid student can be made from {', '.join(FAMILIES)}, found model_type "
            f"{model_type!r:.100}. Choose such a teacher, or the kind distil_xlstm."
        )
    if config.get("quantization_config"):
        raise ValueError(f"teacher: quantization_config: its weights are quantized. {_STEP}")
    made = _make(model_type, {k: v for k, v in config.items() if k != "model_type"})
    _require_computable(made)
    names = (*SIZES, *FLAGS, *OTHERS)
    fields = {name: getattr(made, name) for name in names if hasattr(made, name)}
    if model_type == "mistral":
        fields["sliding_window"] = None  # its default is a window
    return fields


def family_config(fields: Mapping[str, Any]) -> Any:
    """The family's config from what ``teacher_fields`` gave. Raises ValueError as that does."""
    fields = teacher_fields(fields)
    # A padding id would keep the gradient from a row of the embedding.
    without = dict.fromkeys(("pad_token_id", "bos_token_id", "eos_token_id"))
    config = _make(fields.pop("model_type"), fields | without)
    config._attn_implementation = "eager"
    return config


def family_model(config: Any) -> Any:
    """The family's base model, its weights not yet those of the teacher."""
    try:
        return FAMILIES[config.model_type][1](config)
    except KeyError as error:  # of the rotary embedding's function
        raise ValueError(f"teacher: rope_parameters: {error} is missing. {_DOWNLOAD}") from error


def _make(model_type: str, fields: Mapping[str, Any]) -> Any:
    try:
        return FAMILIES[model_type][0](**fields)
    except Exception as error:  # of a type that only transformers knows
        raise ValueError(f"teacher: config.json: {error}. {_DOWNLOAD}") from error


def _require_computable(config: Any) -> None:
    layer_types = set(getattr(config, "layer_types", None) or ["full_attention"])
    if layer_types != {"full_attention"}:
        found = min(layer_types - {"full_attention"})
        raise ValueError(f"teacher: layer_types: {found!r} cannot be replaced. {_STEP}")
    if config.model_type == "mistral" and config.sliding_window is not None:
        raise ValueError(
            f"teacher: sliding_window: {config.sliding_window} positions; its attention is no "
            f"full attention. {_STEP}"
        )
    rope = config.rope_parameters or {}
    if rope.get("rope_type", "default") not in ROPE_TYPES:
        raise ValueError(
            f"teacher: rope_parameters: rope_type {rope['rope_type']!r:.100} depends on the length "
            f"of the row; expected one of {', '.join(ROPE_TYPES)}. {_STEP}"
        )
    if rope.get("partial_rotary_factor", 1.0) != 1.0:
        raise ValueError(f"teacher: rope_parameters: partial_rotary_factor is not 1. {_STEP}")
    heads, groups = config.num_attention_heads, config.num_key_value_heads
    if heads % groups:
        raise ValueError(
            f"teacher: num_key_value_heads: {groups} does not divide the {heads} heads of queries. "
            f"{_DOWNLOAD}"
        )
