"""The mixer in place of a layer's attention: an mLSTM and a window over the copied q, k and v.

    ĥ = o ⊙ φ(q)S / (φ(q)·z) + (1 − o) ⊙ SWA(q, k, v),   then the copied output projection

(arXiv 2603.15590, section 3). S and z are those of an mLSTM whose keys are φ(k); φ are learned
feature maps of the rotated queries and keys, o a gate per head from [q; k; v] before rotation, the
mLSTM's gates are linear in the layer's input. Keys, values and the mLSTM's gates belong to a head
of keys, queries, their feature maps and o to a head of queries.

Shapes: B batch, T positions, D width, N heads of keys and values, G heads of queries for each,
H width of a head, F features.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from stages.train_student.modeling.hybrid_xlstm.configuration import HybridXLSTMConfig
from stages.train_student.modeling.hybrid_xlstm.feature_map import FeatureMap, HeadGate, TokenGate
from stages.train_student.modeling.hybrid_xlstm.full_attention import empty_cache, full_attention
from stages.train_student.modeling.hybrid_xlstm.pattern import LayerKind
from stages.train_student.modeling.hybrid_xlstm.projections import (
    Projected,
    Rotation,
    project,
    rotated,
)
from stages.train_student.modeling.hybrid_xlstm.state import MixerState
from stages.train_student.modeling.layers.document_masks import DocumentLayout
from stages.train_student.modeling.layers.normalized_mlstm import (
    MemoryState,
    empty_memory_state,
    normalized_mlstm,
)
from stages.train_student.modeling.layers.sliding_window import (
    empty_window_state,
    sliding_window_attention,
)

NEW = ("feature_q", "feature_k", "input_gate", "forget_gate", "output_gate")
"""What a mixer has beside the teacher's own parameters."""


class Mixed(NamedTuple):
    """Output [B, T, D] after the output projection, and the state after it.

    Where a mixer with an mLSTM followed the teacher, ``error_BT`` is the squared distance of what
    all heads gave from what the teacher's gave.
    """

    out_BTD: Tensor
    state: MixerState | None = None
    error_BT: Tensor | None = None


class Mixer(nn.Module):
    """One layer's mixer; the parameters of the ``attention`` that it takes keep their names."""

    def __init__(self, attention: Any, kind: LayerKind, config: HybridXLSTMConfig) -> None:
        super().__init__()
        self.kind, self.window, self.num_sinks = kind, config.window, config.num_sinks
        self.chunk_length: int | None = None
        self.head_width: int = attention.head_dim
        self.q_proj: nn.Linear = attention.q_proj
        self.k_proj: nn.Linear = attention.k_proj
        self.v_proj: nn.Linear = attention.v_proj
        self.o_proj: nn.Linear = attention.o_proj
        self.q_norm: nn.Module | None = getattr(attention, "q_norm", None)
        self.k_norm: nn.Module | None = getattr(attention, "k_norm", None)
        width = self.head_width
        self.num_groups = self.k_proj.out_features // width
        if self.has_memory:
            heads, hidden = self.q_proj.out_features // width, self.q_proj.in_features
            is_two_signed = config.feature_map == "two_signed"
            self.feature_q = FeatureMap(heads, width, is_two_signed=is_two_signed)
            self.feature_k = FeatureMap(self.num_groups, width, is_two_signed=is_two_signed)
            # A constant in it would cancel: keys weigh relative to each other.
            self.input_gate = TokenGate(hidden, self.num_groups, bias=False)
            self.forget_gate = TokenGate(hidden, self.num_groups)
        if kind == "hybrid":
            self.output_gate = HeadGate(heads, width)

    @property
    def has_memory(self) -> bool:
        """Whether there is an mLSTM, and so parameters that the teacher does not have."""
        return self.kind in ("hybrid", "mlstm")

    def forward(
        self,
        x_BTD: Tensor,
        rotation: Rotation,
        layout: DocumentLayout,
        state: MixerState | None,
        follows_teacher: bool,
    ) -> Mixed:
        """The mixer's output from the layer's input, normalised where the teacher's is.

        With ``follows_teacher``, it is the output of the teacher's attention, by which the mixer's
        is judged. Then only the error has a gradient, to the new parameters alone.
        """
        dtype = x_BTD.dtype
        with torch.set_grad_enabled(torch.is_grad_enabled() and not follows_teacher):
            x_BTD = x_BTD.to(self.q_proj.weight.dtype)
            before = project(self, x_BTD, self.num_groups)
            query, key = (rotated(part, rotation) for part in before[:2])
            after = Projected(query, key, before.value_BNTH)
            if follows_teacher or self.kind == "attention":
                cache = None if state is None else state.cache
                target, cache = full_attention(*after, layout, cache)
                out_BTD = self._project_out(target, dtype)
        if self.kind == "attention" or (follows_teacher and not self.has_memory):
            return Mixed(out_BTD, None if state is None else MixerState(cache=cache))
        hidden, following = self._mix(x_BTD, before, after, layout, state)
        if not follows_teacher:
            return Mixed(self._project_out(hidden, dtype), following)
        with torch.autocast(x_BTD.device.type, enabled=False):
            error_BNGTH = (hidden - target.to(hidden.dtype)).square()
            error_BT = error_BNGTH.sum((1, 2, 4))
        return Mixed(out_BTD, None, error_BT)

    def empty_state(self, batch: int) -> MixerState:
        """The state before the first position of a document."""
        width, groups, like = self.head_width, self.num_groups, self.k_proj.weight.detach()
        if self.kind == "attention":
            return MixerState(cache=empty_cache(batch, groups, width, like))
        memory = window = None
        if self.has_memory:
            wide = like.new_empty(0, dtype=torch.promote_types(like.dtype, torch.float32))
            num_features = self.feature_k.num_features
            memory = empty_memory_state(batch, groups, num_features, width, wide)
        if self.kind != "mlstm":
            band = (self.window, self.num_sinks)
            window = empty_window_state(batch, groups, width, band, like)
        return MixerState(memory=memory, window=window)

    def _mix(
        self,
        x_BTD: Tensor,
        before: Projected,
        after: Projected,
        layout: DocumentLayout,
        state: MixerState | None,
    ) -> tuple[Tensor, MixerState | None]:
        """What the heads give [B, N, G, T, H], at least float32, and the state after it."""
        state = state or MixerState()
        memory = window = hidden = None
        if self.has_memory:
            hidden, memory = self._remember(x_BTD, after, layout, state.memory)
        if self.kind != "mlstm":
            seen, window = sliding_window_attention(
                *after, self.window, self.num_sinks, layout, state.window
            )
            hidden = self._gated(hidden, seen, before)
        assert hidden is not None
        following = MixerState(memory=memory, window=window)
        return hidden, following if any(part is not None for part in following) else None

    def _remember(
        self, x_BTD: Tensor, after: Projected, layout: DocumentLayout, state: MemoryState | None
    ) -> tuple[Tensor, MemoryState | None]:
        features = self.feature_q(after.query_BNGTH), self.feature_k(after.key_BNTH)
        gates = self.input_gate(x_BTD), self.forget_gate(x_BTD)
        return normalized_mlstm(features, after.value_BNTH, gates, layout, state, self.chunk_length)

    def _gated(self, memory: Tensor | None, seen: Tensor, before: Projected) -> Tensor:
        with torch.autocast(seen.device.type, enabled=False):
            seen = seen.to(torch.promote_types(seen.dtype, torch.float32))
            if memory is None:
                return seen
            gate_BNGT1 = self.output_gate(*before).sigmoid()[..., None]
            return torch.lerp(seen, memory.to(seen.dtype), gate_BNGT1.to(seen.dtype))

    def _project_out(self, hidden_BNGTH: Tensor, dtype: torch.dtype) -> Tensor:
        hidden_BTD = hidden_BNGTH.permute(0, 3, 1, 2, 4).flatten(2)
        out_BTD: Tensor = self.o_proj(hidden_BTD.to(self.o_proj.weight.dtype))
        return out_BTD.to(dtype)


def is_new(name: str) -> bool:
    """Whether the parameter ``name`` is one that the teacher does not have."""
    return any(f".self_attn.{part}." in name for part in NEW)


@torch.no_grad()
def initialise_mixer(
    mixer: Mixer,
    *,
    forget_gate_bias: float,
    output_gate_bias: float,
    generator: torch.Generator,
) -> None:
    """Fill the new parameters: gates do not depend on their input yet, feature maps are random.

    A query's feature map begins as that of its key, so that features of what is alike are alike;
    its entries have the deviation H^−½, which keeps the scale of a query's coordinates.
    """
    if not mixer.has_memory:
        return
    weight = mixer.feature_k.weight
    # Drawn on the host, so that weights are a function of the seed wherever they lie.
    drawn = torch.randn(weight.shape, generator=generator, dtype=torch.float32)
    weight.copy_(drawn * mixer.head_width**-0.5)
    group = mixer.feature_q.weight.shape[0] // mixer.num_groups
    mixer.feature_q.weight.copy_(weight.repeat_interleave(group, 0))
    mixer.input_gate.weight.zero_()
    gates: list[tuple[TokenGate | HeadGate, float]] = [(mixer.forget_gate, forget_gate_bias)]
    if mixer.kind == "hybrid":
        gates.append((mixer.output_gate, output_gate_bias))
    for gate, bias in gates:
        gate.weight.zero_()
        gate.bias.fill_(bias)
