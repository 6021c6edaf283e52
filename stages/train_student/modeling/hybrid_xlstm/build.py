"""Makes a new student from all the weights of its teacher.

In: settings, the teacher's config.json and its weights by name. Out: the student, everything that
the teacher has copied, the rest random.

R rows of the head, D width.
"""

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from stages.train_student.modeling.hybrid_xlstm.configuration import HybridXLSTMConfig
from stages.train_student.modeling.hybrid_xlstm.mixer import Mixer, initialise_mixer, is_new
from stages.train_student.modeling.hybrid_xlstm.modeling import HybridXLSTMForCausalLM
from stages.train_student.modeling.hybrid_xlstm.settings import HybridXLSTMSettings
from stages.train_student.modeling.hybrid_xlstm.teacher_family import teacher_fields

_EMBEDDING, _HEAD = "model.embed_tokens.weight", "lm_head.weight"
_COMPUTED = ".rotary_emb.inv_freq"  # older files hold it; it follows from the config


def build_student(
    settings: HybridXLSTMSettings,
    *,
    teacher_config: Mapping[str, Any],
    weights: Iterable[tuple[str, Tensor]] | None,
    vocab_size: int,
    eos_token_id: int | None,
    seed: int,
) -> HybridXLSTMForCausalLM:
    """A student whose new weights are a function of ``seed`` alone.

    ``weights`` are all of the teacher's, by their names in its files, read once; their precision is
    kept for what is not trained, and the rest is float32. None, or ``torch.device("meta")``
    around the call, leaves all weights without memory, for their shapes. The global random state
    is untouched. Raises ValueError where settings, config and weights do not fit.
    """
    fields = teacher_fields(teacher_config)
    named = {} if weights is None or _is_meta() else _by_name(weights, fields)
    dtype = named[_EMBEDDING].dtype if named else torch.float32
    config = HybridXLSTMConfig(
        vocab_size=vocab_size,
        head_rows=fields["vocab_size"],
        hidden_size=fields["hidden_size"],
        embedding_dtype=str(dtype).removeprefix("torch."),
        teacher_config=fields,
        pattern=settings.pattern,
        window=settings.window,
        num_sinks=settings.num_sinks,
        feature_map=settings.feature_map,
        trained=settings.trained,
        tie_word_embeddings=fields["tie_word_embeddings"],
        eos_token_id=eos_token_id,
        pad_token_id=eos_token_id,
        dtype="float32",
    )
    if vocab_size > config.head_rows:
        raise ValueError(
            f"teacher: vocab_size = {vocab_size} is more than the {config.head_rows} rows of the "
            "head. Make the cache again from an intact teacher."
        )
    with torch.device("meta"):
        student = HybridXLSTMForCausalLM(config)
    if not named:
        return student
    _take_over(student, named)
    make_rotation(student)
    generator = torch.Generator().manual_seed(seed)
    for layer in student.layers:
        _initialise(layer.self_attn, settings, generator)
    return student


def _by_name(weights: Iterable[tuple[str, Tensor]], fields: Mapping[str, Any]) -> dict[str, Tensor]:
    named = {name: tensor for name, tensor in weights if not name.endswith(_COMPUTED)}
    if fields["tie_word_embeddings"]:
        named.pop(_HEAD, None)
    if _EMBEDDING not in named:
        raise ValueError(
            f"teacher: its weights have no {_EMBEDDING!r}. Save the teacher with its head, as a "
            "causal language model."
        )
    return named


def _take_over(student: HybridXLSTMForCausalLM, named: dict[str, Tensor]) -> None:
    """Replace every parameter that the teacher has by its weights, one at a time."""
    copied = {name: p for name, p in student.named_parameters() if not is_new(name)}
    if missing := sorted(copied.keys() - named.keys()):
        raise ValueError(
            f"teacher: its weights lack {len(missing)} that its config.json asks for, "
            f"{missing[0]!r} among them. Download the teacher again."
        )
    if unknown := sorted(named.keys() - copied.keys()):
        raise ValueError(
            f"teacher: a hybrid student has no place for {len(unknown)} of its weights, "
            f"{unknown[0]!r} among them. Choose a teacher of a plain Transformer."
        )
    for name, parameter in copied.items():
        tensor = named.pop(name)
        if tensor.shape != parameter.shape:
            raise ValueError(
                f"teacher: {name}: expected the shape {list(parameter.shape)} by config.json, "
                f"found {list(tensor.shape)}. Download the teacher again."
            )
        # Copies that are trained must not change the teacher's own tensors.
        tensor = tensor.detach().to(parameter.dtype, copy=parameter.requires_grad)
        _replace(student, name, nn.Parameter(tensor, requires_grad=parameter.requires_grad))
    student.tie_weights()
    if not student.config.tie_word_embeddings:
        assert not student.lm_head.weight.is_meta


def _replace(student: nn.Module, name: str, parameter: nn.Parameter) -> None:
    owner, _, last = name.rpartition(".")
    setattr(student.get_submodule(owner), last, parameter)


def make_rotation(student: HybridXLSTMForCausalLM) -> None:
    """Compute the angles of positions, which are no weights, where they have no memory yet."""
    rotary = student.model.rotary_emb
    student.model.rotary_emb = type(rotary)(config=rotary.config)


def _initialise(mixer: Mixer, settings: HybridXLSTMSettings, generator: torch.Generator) -> None:
    for name, parameter in list(mixer.named_parameters()):
        if parameter.is_meta:
            _replace(mixer, name, nn.Parameter(torch.empty_like(parameter, device="cpu")))
    initialise_mixer(
        mixer,
        forget_gate_bias=settings.forget_gate_bias,
        output_gate_bias=settings.output_gate_bias,
        generator=generator,
    )


def _is_meta() -> bool:
    return torch.get_default_device().type == "meta"
