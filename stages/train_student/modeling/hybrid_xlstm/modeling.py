"""The student: the teacher's own layers, a mixer of constant state in place of their attention.

In: token ids and where documents begin. Out: hidden states for the loss, how far each layer is from
the teacher's, or logits for everyone else. A Hugging Face model: a new one is made by
``build_student``, a stored one loaded by ``from_pretrained``. Parameters of the teacher have the
names that they have in the teacher.

Documents packed into one row do not see each other, and positions count from a document's start.
Embedding and layers lie on one device.

Shapes: B batch, T positions, D width, R rows of the head (padding included), L layers with new
parameters.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from stages.train_student.modeling.causal_student import CausalStudent
from stages.train_student.modeling.hybrid_xlstm.configuration import HybridXLSTMConfig
from stages.train_student.modeling.hybrid_xlstm.directory_code import AUTO_MAP, write_directory_code
from stages.train_student.modeling.hybrid_xlstm.layer import HybridLayer
from stages.train_student.modeling.hybrid_xlstm.mixer import Mixed, is_new
from stages.train_student.modeling.hybrid_xlstm.projections import Rotation
from stages.train_student.modeling.hybrid_xlstm.settings import Trained
from stages.train_student.modeling.hybrid_xlstm.state import HybridState
from stages.train_student.modeling.hybrid_xlstm.teacher_family import family_config, family_model
from stages.train_student.modeling.layers.document_masks import DocumentLayout

MERGED = "projections"
"""What was ``trained`` where adapters have become part of the layers' projections."""
_PROJECTION = re.compile(r"\.layers\.\d+\.\w+\.\w+_proj\.weight$")


class Alignment(NamedTuple):
    """Teacher and student in each layer with new parameters, from what the teacher's layer got.

    ``hidden_BTD`` are the teacher's states after the final norm, without a gradient.
    ``errors_LBT`` (at least float32): ‖teacher's − student's‖² of what all heads give before the
    output projection; its gradient reaches the new parameters alone.
    """

    hidden_BTD: Tensor
    errors_LBT: Tensor


class StackOutput(NamedTuple):
    """States [B, T, D] after the final norm, what a state became, and the rest of ``Alignment``.

    ``layers_BTD``: the residual stream after the layers that were asked for.
    """

    hidden_BTD: Tensor
    state: HybridState | None
    errors_LBT: Tensor | None = None
    layers_BTD: tuple[Tensor, ...] = ()


class HybridXLSTMForCausalLM(CausalStudent):
    """The student as a causal language model."""

    config_class = HybridXLSTMConfig
    config: HybridXLSTMConfig
    auto_map = AUTO_MAP
    base_model_prefix = "model"
    _tied_weights_keys = {"lm_head.weight": "model.embed_tokens.weight"}  # noqa: RUF012 (their class attribute)

    def __init__(self, config: HybridXLSTMConfig) -> None:
        super().__init__(config)
        if config.teacher_config is None:
            raise ValueError("config: teacher_config is missing. Build the student anew.")
        family = family_config(config.teacher_config)
        sizes = (config.hidden_size, config.head_rows, config.tie_word_embeddings)
        of_teacher = (family.hidden_size, family.vocab_size, family.tie_word_embeddings)
        if sizes != of_teacher:
            raise ValueError(
                f"config: hidden_size, head_rows and tie_word_embeddings are {sizes}, but the "
                f"teacher_config has {of_teacher}. Build the student anew."
            )
        self.model: Any = family_model(family)
        # Masks and states lie where the layers do, so that is one device.
        self._no_split_modules = [type(self.model).__name__]
        layers = zip(self.model.layers, config.layer_kinds, strict=True)
        self.model.layers = nn.ModuleList(HybridLayer(*layer, config) for layer in layers)
        self.lm_head = nn.Linear(config.hidden_size, config.head_rows, bias=False)
        copies_dtype = getattr(torch, config.embedding_dtype)
        for name, parameter in self.named_parameters():
            if not is_trained(name, config.trained):
                parameter.data = parameter.data.to(copies_dtype)
        self.freeze()
        self.post_init()  # type: ignore[no-untyped-call]

    @staticmethod
    def write_directory_code(directory: Path) -> None:
        write_directory_code(directory)

    @property
    def dtype(self) -> torch.dtype:
        """That of what is trained, which Hugging Face saves as the precision to load it in."""
        trained = self.config.trained
        return next(p.dtype for name, p in self.named_parameters() if is_trained(name, trained))

    @property
    def layers(self) -> list[HybridLayer]:
        """First to last."""
        return list(self.model.layers)

    @property
    def num_layers(self) -> int:
        return len(self.model.layers)

    @property
    def converted_layers(self) -> list[int]:
        """Indices of the layers with new parameters, which ``alignment`` compares."""
        return [i for i, layer in enumerate(self.layers) if layer.self_attn.has_memory]

    @property
    def output_gates(self) -> dict[int, nn.Module]:
        """By layer: gives the pre-activation of the gate between window (0) and mLSTM (1)."""
        mixers = enumerate(layer.self_attn for layer in self.layers)
        return {i: mixer.output_gate for i, mixer in mixers if mixer.kind == "hybrid"}

    @property
    def attention_width(self) -> int:
        """Numbers that all heads of a layer give at a position."""
        return self.layers[0].self_attn.o_proj.in_features

    @property
    def stack_device(self) -> torch.device:
        device: torch.device = self.model.norm.weight.device
        return device

    def new_parameters(self) -> Iterator[str]:
        """Names of the parameters that the teacher does not have."""
        return (name for name, _ in self.named_parameters() if is_new(name))

    def set_trained(self, trained: Trained) -> None:
        """Let gradients reach the ``new`` parameters, the whole ``mixers``, or ``all``.

        What is trained becomes at least float32.
        """
        self.config.trained = trained
        self.freeze()
        for parameter in self.parameters():
            if parameter.requires_grad:
                wide = torch.promote_types(parameter.dtype, torch.float32)
                parameter.data = parameter.data.to(wide)

    def freeze(self) -> None:
        for name, parameter in self.named_parameters():
            parameter.requires_grad_(is_trained(name, self.config.trained))

    def checkpoint_activations(self, is_on: bool) -> None:
        """Whether layers are computed again backward instead of keeping what they need for it."""
        for layer in self.layers:
            layer.checkpoints_activations = is_on

    def set_chunk_length(self, chunk_length: int | None) -> None:
        """The most positions in a chunk of the mLSTM; None lets it choose."""
        for layer in self.layers:
            layer.self_attn.chunk_length = chunk_length

    def alignment(self, input_ids: Tensor, is_document_start: Tensor | None = None) -> Alignment:
        """Teacher and student in each layer; documents as in ``hidden_states``.

        The teacher is made of the parameters that were copied from it, so it is the teacher only
        as long as they are not trained.
        """
        layout = self.lay_out(input_ids, is_document_start, has_state=False)
        found = self.run_stack(input_ids, layout, None, follows_teacher=True)
        assert found.errors_LBT is not None
        return Alignment(found.hidden_BTD, found.errors_LBT)

    def layer_states(
        self, input_ids: Tensor, is_document_start: Tensor | None, layers: tuple[int, ...]
    ) -> StackOutput:
        """``hidden_states``, and ``layers_BTD``: the residual stream after each of ``layers``.

        They rise, and are counted from 1. After the last, it is the state after the final norm, as
        in Hugging Face's ``output_hidden_states``.
        """
        layout = self.lay_out(input_ids, is_document_start, has_state=False)
        return self.run_stack(input_ids, layout, None, layers=layers)

    def run_stack(
        self,
        input_ids: Tensor,
        layout: DocumentLayout,
        state: HybridState | None,
        follows_teacher: bool = False,
        layers: tuple[int, ...] = (),
    ) -> StackOutput:
        """``hidden_states`` or, with ``follows_teacher``, ``alignment`` of a batch laid out; with
        ``layers``, ``layer_states``.

        What reads the weights of a training step, so that sharding has one method to hook into.
        """
        model, has_gradient = self.model, torch.is_grad_enabled() and not follows_teacher
        position_BT = _positions(layout, state)
        with torch.set_grad_enabled(has_gradient):
            x_BTD = model.embed_tokens(input_ids.to(self.stack_device))
        rotation: Rotation = model.rotary_emb(x_BTD, position_BT)
        states, errors, kept = [], [], []
        for index, layer in enumerate(self.layers):
            before = None if state is None else state.layers[index]
            mixed: Mixed = layer(x_BTD, rotation, layout, before, follows_teacher)
            x_BTD = mixed.out_BTD
            if mixed.state is not None:
                states.append(mixed.state)
            if mixed.error_BT is not None:
                errors.append(mixed.error_BT)
            if index + 1 in layers and index + 1 < self.num_layers:
                kept.append(x_BTD)
        with torch.set_grad_enabled(has_gradient):
            hidden_BTD = model.norm(x_BTD)
        if self.num_layers in layers:
            kept.append(hidden_BTD)
        if follows_teacher:
            nothing = hidden_BTD.new_zeros(0, *hidden_BTD.shape[:2], dtype=torch.float32)
            return StackOutput(hidden_BTD, None, torch.stack(errors) if errors else nothing)
        if state is None:
            return StackOutput(hidden_BTD, None, layers_BTD=tuple(kept))
        position_B = (position_BT[:, -1] + 1).expand(len(input_ids)).clone()
        return StackOutput(hidden_BTD, HybridState(position_B, tuple(states)))

    def empty_state(self, batch: int) -> HybridState:
        position_B = torch.zeros(batch, dtype=torch.long, device=self.stack_device)
        return HybridState(position_B, tuple(x.self_attn.empty_state(batch) for x in self.layers))

    def get_input_embeddings(self) -> nn.Embedding:
        found: nn.Embedding = self.model.embed_tokens
        return found

    def _reorder_cache(self, state: HybridState, beam_indices: Tensor) -> HybridState:
        return state.rows(beam_indices)


def is_trained(name: str, trained: str) -> bool:
    """Whether the parameter ``name`` is trained, by the setting of that name."""
    if trained == "all" or is_new(name):
        return True
    if trained == "lora":
        return ".lora_" in name  # adapters, which are not part of this code
    if trained == MERGED:
        return _PROJECTION.search(name) is not None
    return trained == "mixers" and ".self_attn." in name


def _positions(layout: DocumentLayout, state: HybridState | None) -> Tensor:
    """How many positions of its document come before each, [B or 1, T]."""
    position_BT = torch.arange(layout.num_positions, device=layout.device)[None]
    if layout.documents is not None:
        position_BT = position_BT - layout.documents.first_BT
    if state is None:
        return position_BT
    before_BT = state.position_B[:, None]
    if layout.documents is not None:
        before_BT = before_BT * layout.documents.continues_BT
    return position_BT + before_BT
