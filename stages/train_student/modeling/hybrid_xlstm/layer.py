"""A decoder layer of the teacher with a mixer in place of its attention.

In: the family's own layer. Out: its norms and feed-forward under their own names, and our order
of computation, which carries states and errors beside the residual stream. Norms are before
attention and feed-forward (Llama, Mistral, Qwen) or after them (OLMo 2).

Shapes: B batch, T positions, D width.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from stages.train_student.modeling.hybrid_xlstm.configuration import HybridXLSTMConfig
from stages.train_student.modeling.hybrid_xlstm.mixer import Mixed, Mixer
from stages.train_student.modeling.hybrid_xlstm.pattern import LayerKind
from stages.train_student.modeling.hybrid_xlstm.projections import Rotation
from stages.train_student.modeling.hybrid_xlstm.state import MixerState
from stages.train_student.modeling.layers.document_masks import DocumentLayout


class HybridLayer(nn.Module):
    """One layer. All weights are read within ``forward``, so that sharding can hook into it."""

    def __init__(self, layer: Any, kind: LayerKind, config: HybridXLSTMConfig) -> None:
        super().__init__()
        self.self_attn = Mixer(layer.self_attn, kind, config)
        self.mlp: nn.Module = layer.mlp
        self.is_normed_before = hasattr(layer, "input_layernorm")
        if self.is_normed_before:
            self.input_layernorm: nn.Module = layer.input_layernorm
        else:
            self.post_feedforward_layernorm: nn.Module = layer.post_feedforward_layernorm
        self.post_attention_layernorm: nn.Module = layer.post_attention_layernorm
        self.checkpoints_activations = False

    def forward(
        self,
        x_BTD: Tensor,
        rotation: Rotation,
        layout: DocumentLayout,
        state: MixerState | None,
        follows_teacher: bool = False,
    ) -> Mixed:
        """The residual stream after the layer, and the rest as in ``Mixer.forward``.

        With ``follows_teacher``, the stream is the teacher's, and has no gradient.
        """
        arguments = (x_BTD, rotation, layout, state, follows_teacher)
        if self.checkpoints_activations and torch.is_grad_enabled() and state is None:
            found: Mixed = checkpoint(
                self._run, *arguments, use_reentrant=False, preserve_rng_state=False
            )
            return found
        return self._run(*arguments)

    def _run(
        self,
        x_BTD: Tensor,
        rotation: Rotation,
        layout: DocumentLayout,
        state: MixerState | None,
        follows_teacher: bool,
    ) -> Mixed:
        has_gradient = torch.is_grad_enabled() and not follows_teacher
        with torch.set_grad_enabled(has_gradient):
            normed = self.input_layernorm(x_BTD) if self.is_normed_before else x_BTD
        mixed: Mixed = self.self_attn(normed, rotation, layout, state, follows_teacher)
        with torch.set_grad_enabled(has_gradient):
            return mixed._replace(out_BTD=self._feed_forward(x_BTD, mixed.out_BTD))

    def _feed_forward(self, x_BTD: Tensor, attended_BTD: Tensor) -> Tensor:
        if self.is_normed_before:
            x_BTD = x_BTD + attended_BTD
            fed: Tensor = x_BTD + self.mlp(self.post_attention_layernorm(x_BTD))
            return fed
        x_BTD = x_BTD + self.post_attention_layernorm(attended_BTD)
        fed = x_BTD + self.post_feedforward_layernorm(self.mlp(x_BTD))
        return fed
