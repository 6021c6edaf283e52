"""The kind ``hybrid_xlstm`` (arXiv 2603.15590): the teacher, mixers in place of its attention.

MFU (Chowdhery et al. 2022, appendix B) counts what the model's definition needs, whatever is done.
A token meets each trained weight three times, forward and twice backward, at 2 operations; a frozen
one twice, since no gradient is taken for it. An mLSTM's state of F × H numbers is written once for
a head of keys and read by each of its queries, a window read by each query twice, for scores and
values: 2 operations for each of these numbers, and twice that backward. Of layers that keep full
attention, which grows with the row, only the weights are counted.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, ClassVar

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from stages.model_files.weight_files import pickled_note, weight_files
from stages.train_student.modeling.hybrid_xlstm import auto_classes  # noqa: F401 (registers them)
from stages.train_student.modeling.hybrid_xlstm.build import build_student
from stages.train_student.modeling.hybrid_xlstm.configuration import HybridXLSTMConfig
from stages.train_student.modeling.hybrid_xlstm.directory_code import AUTO_MAP, directory_code
from stages.train_student.modeling.hybrid_xlstm.mixer import Mixer
from stages.train_student.modeling.hybrid_xlstm.modeling import MERGED, HybridXLSTMForCausalLM
from stages.train_student.modeling.hybrid_xlstm.pattern import is_for_all, parse_pattern
from stages.train_student.modeling.hybrid_xlstm.settings import HybridXLSTMSettings
from stages.train_student.students.low_rank import add_adapters, is_adapter, merge_adapters
from stages.train_student.students.parameter_count import count_parameters
from stages.train_student.students.stored_teacher import is_teacher_config, teacher_config_problem
from stages.train_student.students.stored_values import is_size
from stages.train_student.students.student import DirectoryCode, Sharding, StudentKind, TeacherParts

_LAYER = re.compile(r"\bmodel\.layers\.(\d+)\.")


def _is_pattern(value: object) -> bool:
    try:
        return isinstance(value, str) and bool(parse_pattern(value))
    except ValueError:
        return False


class _HybridXLSTM:
    config_class = HybridXLSTMConfig
    model_class = HybridXLSTMForCausalLM
    stored_settings: ClassVar[Mapping[str, Callable[[object], bool]]] = {
        "teacher_config": is_teacher_config,
        "pattern": _is_pattern,
        "window": lambda value: is_size(value) and int(value) <= 2**20,  # type: ignore[call-overload]
        "num_sinks": lambda value: is_size(value, 0) and int(value) <= 4096,  # type: ignore[call-overload]
        "feature_map": ("two_signed", "one_signed").__contains__,
        "trained": ("new", "mixers", "all", MERGED).__contains__,
    }

    def stored_problem(self, key: str, value: object) -> str:
        return teacher_config_problem(value) if key == "teacher_config" else ""

    def row_warning(self, settings: HybridXLSTMSettings, sequence_length: int) -> str:
        if settings.window < sequence_length or "hybrid" not in parse_pattern(settings.pattern):
            return ""
        return (
            f"train_student.student.window is {settings.window}, so every row of {sequence_length} "
            "positions fits into it: nothing is left for the mLSTM of the hybrid layers to learn. "
            "Set a smaller window, or use a cache of longer rows."
        )

    @property
    def directory_code(self) -> DirectoryCode:
        return DirectoryCode(auto_map=AUTO_MAP, files=directory_code())

    def build(
        self, settings: HybridXLSTMSettings, teacher: TeacherParts, seed: int
    ) -> HybridXLSTMForCausalLM:
        weights = teacher.weights
        if weights is None:
            raise ValueError(
                "student: a hybrid student is made from all of its teacher's weights, which are "
                "not there. Make the cache with cache_teacher.keep_teacher_weights=true, or give "
                "the teacher's directory."
            )
        student = build_student(
            settings,
            teacher_config=weights.config,
            weights=_tensors(weights.directory),
            vocab_size=teacher.vocab_size,
            eos_token_id=teacher.eos_token_id,
            seed=seed,
        )
        for key in ("hidden_size", "head_rows"):
            expected, found = getattr(teacher, key), getattr(student.config, key)
            if found != expected:
                raise ValueError(
                    f"{weights.directory}: expected {key} = {expected}, as in the cache, found "
                    f"{found}. Give the teacher that the cache was made with."
                )
        if settings.trained == "lora":
            add_adapters(student, settings.lora_rank, seed)
        return student

    def publishable(self, model: HybridXLSTMForCausalLM) -> HybridXLSTMForCausalLM:
        return merge_adapters(model) if any(map(is_adapter, model.state_dict())) else model

    def prepare(
        self, settings: HybridXLSTMSettings, model: HybridXLSTMForCausalLM, device: torch.device
    ) -> str:
        """Nothing is chosen by the device."""
        model.set_chunk_length(settings.chunk_length)
        model.checkpoint_activations(settings.gradient_checkpointing)
        return ""

    def sharding(self, model: HybridXLSTMForCausalLM) -> Sharding:
        # Not `hidden_states`: FSDP moves what that is given to the device, marks on the host, too.
        return Sharding(root=model, units=model.layers, forward_method="run_stack")

    def mixer_parameters(self, model: HybridXLSTMForCausalLM) -> frozenset[str]:
        return frozenset(model.new_parameters())

    def operations_per_token(self, model: HybridXLSTMForCausalLM) -> float:
        config = model.config
        total = 0.0
        for layer in model.layers:
            total += sum((6 if p.requires_grad else 4) * p.numel() for p in layer.parameters())
            total += _mixing_operations(layer.self_attn)
        per_weight = 6 if model.lm_head.weight.requires_grad else 4
        return total + per_weight * config.vocab_size * config.hidden_size

    def description(self, model: HybridXLSTMForCausalLM) -> str:
        config = model.config
        trainable, total = count_parameters(model)
        how = ", the projections by adapters of low rank," if config.trained == MERGED else ""
        sinks = f" and the document's first {config.num_sinks}" if config.num_sinks else ""
        return (
            f"{config.num_hidden_layers} layers of the teacher, its attention replaced "
            f"({config.pattern}) by mLSTM heads beside attention to the last {config.window} "
            f"positions{sinks}: {trainable:,} of {total:,} parameters were trained{how} as in "
            "hybrid xLSTM distillation (arXiv 2603.15590)"
        )

    def blocks_differ(self, settings: Any, weights: Iterable[str]) -> str:
        """Weights of a checkpoint are those that are trained, so not of all layers."""
        indices = {int(match[1]) for name in weights if (match := _LAYER.search(name))}
        is_stored = isinstance(settings, HybridXLSTMConfig)
        if is_stored and len(indices) != settings.num_hidden_layers:
            return (
                f"teacher_config has {settings.num_hidden_layers} layers, but the weights have "
                f"{len(indices)}."
            )
        if is_stored or is_for_all(settings.pattern):
            return ""
        num_layers, found = len(parse_pattern(settings.pattern)), max(indices, default=-1) + 1
        if found > num_layers:
            return f"pattern names {num_layers} layers, but the weights have at least {found}."
        return ""


def _mixing_operations(mixer: Mixer) -> float:
    """What one token costs forward and backward beside weights (see the top of this file)."""
    width = mixer.head_width
    num_queries = mixer.q_proj.out_features // width
    numbers = 0
    if mixer.has_memory:
        numbers += mixer.feature_k.num_features * width * (mixer.num_groups + num_queries)
    if mixer.kind in ("hybrid", "window"):
        numbers += 2 * num_queries * width * (mixer.window + mixer.num_sinks)
    return 6.0 * numbers


def _tensors(directory: Any) -> Iterator[tuple[str, Tensor]]:
    names = weight_files(directory)
    if not names:
        raise ValueError(
            f"{directory}: holds no safetensors weights{pickled_note(directory)}. Save the teacher "
            "with safetensors weights."
        )
    for file in names:
        try:
            with safe_open(directory / file, framework="pt") as weights:
                for name in weights.keys():  # noqa: SIM118  (no mapping)
                    yield name, weights.get_tensor(name)
        except SafetensorError as error:
            raise ValueError(
                f"{directory / file}: damaged ({error}). Put it back from where the teacher came."
            ) from error


KIND: StudentKind[HybridXLSTMSettings, HybridXLSTMForCausalLM] = _HybridXLSTM()
