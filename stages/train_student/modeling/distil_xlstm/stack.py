"""Runs the package's xLSTM stack with documents kept apart, from any recurrent state.

In: a stack of ``IsolatedBlock`` and embedded tokens. Out: what the package's own forward would give
for every document alone.

The package's modules and parameters are used as they are; only their order of computation is ours,
because the package's forward lets documents leak through the convolution, the recurrence and the
decay matrix, and takes no state.

Shapes: B batch, T positions, D width, N heads, H width of a head, K width of the convolution.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import silu

from stages.train_student.modeling.layers.document_masks import DocumentLayout
from stages.train_student.modeling.layers.mlstm import (
    CellState,
    empty_cell_state,
    mlstm,
)
from stages.train_student.modeling.layers.slstm import ScanState, empty_state, slstm_scan


class LayerState(NamedTuple):
    """State of one layer: the last K − 1 inputs of its convolution, and that of its cell."""

    conv_BKD: Tensor
    cell: ScanState | CellState

    def rows(self, indices: Tensor) -> "LayerState":
        """The state of the batch rows ``indices``, in that order."""
        batch_dim = 1 if isinstance(self.cell, ScanState) else 0
        cell = [part.index_select(batch_dim, indices) for part in self.cell]
        return LayerState(self.conv_BKD.index_select(0, indices), type(self.cell)(*cell))


StackState = tuple[LayerState, ...]


class IsolatedBlock(nn.Module):
    """One of the package's blocks, its submodules under their own names, with our ``forward``.

    All weights are read within ``forward``, so that hooks that gather or move a block's weights
    (sharding, offloading) can be set on the block.
    """

    def __init__(self, block: Any) -> None:
        super().__init__()
        self.config = block.config
        self.xlstm_norm: nn.Module = block.xlstm_norm
        self.xlstm: nn.Module = block.xlstm
        self.ffn_norm: nn.Module | None = block.ffn_norm
        self.ffn: nn.Module | None = block.ffn

    def forward(
        self, x_BTD: Tensor, layout: DocumentLayout, state: LayerState | None
    ) -> tuple[Tensor, LayerState | None]:
        """The block's output and, where ``state`` was given, the state after it."""
        layer_forward = slstm_layer_forward if _is_slstm(self.xlstm) else mlstm_layer_forward
        y_BTD, after = layer_forward(self.xlstm, self.xlstm_norm(x_BTD), layout, state)
        x_BTD = x_BTD + y_BTD
        if self.ffn is not None and self.ffn_norm is not None:
            x_BTD = x_BTD + self.ffn(self.ffn_norm(x_BTD))
        return x_BTD, after


def empty_stack_state(stack: nn.Module, batch: int) -> StackState:
    """The state before the first position of a document, for every layer."""
    return tuple(_empty_layer_state(block.xlstm, batch) for block in _blocks(stack))


def stack_forward(
    stack: nn.Module, x_BTD: Tensor, layout: DocumentLayout, state: StackState | None
) -> tuple[Tensor, StackState | None]:
    """The stack's output after its final norm and, where ``state`` was given, the state after it.

    Gradients flow to parameters and input, not into states.
    """
    states: list[LayerState] = []
    for index, block in enumerate(_blocks(stack)):
        x_BTD, after = block(x_BTD, layout, None if state is None else state[index])
        if after is not None:
            states.append(after)
    normed: Tensor = stack.get_submodule("post_blocks_norm")(x_BTD)
    return normed, tuple(states) if state is not None else None


def slstm_layer_forward(
    layer: Any, x_BTD: Tensor, layout: DocumentLayout, state: LayerState | None
) -> tuple[Tensor, LayerState | None]:
    """An ``sLSTMLayer``. Everything in it is a gate or a recurrence, so all of it is float32."""
    dtype = _at_least_float32(layer.fgate.weight)
    with torch.autocast(x_BTD.device.type, enabled=False):
        x_BTD = x_BTD.to(dtype)
        conv_BTD, conv_state = causal_conv(layer.conv1d.conv, x_BTD, layout, state)
        conv_BTD = silu(conv_BTD)
        # The package feeds its `fgate` to the cell's input gate and its `igate` to the forget gate.
        projections = ((layer.fgate, layer.igate), conv_BTD), ((layer.zgate, layer.ogate), x_BTD)
        gates = torch.cat(
            [
                torch.einsum(
                    "btnh,gnkh->tnbgk",
                    source.view(*source.shape[:2], layer.config.num_heads, -1),
                    torch.stack([projection.weight for projection in pair]).to(dtype),
                )
                for pair, source in projections
            ],
            dim=3,
        )
        cell = layer.slstm_cell
        bias_GNH = cell._bias_.to(dtype).view(4, layer.config.num_heads, -1)
        gates = gates + bias_GNH.transpose(0, 1)[:, None]
        recurrent = cell._recurrent_kernel_.transpose(1, 2).to(dtype)
        before = None if state is None else ScanState(*state.cell)
        resets = None if layout.documents is None else layout.documents.resets
        y_TNBH, after = slstm_scan(gates, recurrent, before, resets)
        y_BNTH = layer.dropout(y_TNBH.permute(2, 1, 0, 3)).to(layer.group_norm.weight.dtype)
        y_BTD = layer.group_norm(y_BNTH).transpose(1, 2).flatten(2)
    if conv_state is None:
        return y_BTD, None
    return y_BTD, LayerState(conv_state, ScanState(*(part.clone() for part in after)))


def mlstm_layer_forward(
    layer: Any, x_BTD: Tensor, layout: DocumentLayout, state: LayerState | None
) -> tuple[Tensor, LayerState | None]:
    """An ``mLSTMLayer``. Convolution, gates and decay are float32, the projections need not be."""
    inner_BTD, z_BTD = layer.proj_up(x_BTD).chunk(2, dim=-1)
    conv_BTD, conv_state = causal_conv(layer.conv1d.conv, inner_BTD, layout, state)
    conv_BTD = silu(conv_BTD).to(layer.q_proj.weight.dtype)
    q, k, v = layer.q_proj(conv_BTD), layer.k_proj(conv_BTD), layer.v_proj(inner_BTD)

    cell = layer.mlstm_cell
    with torch.autocast(x_BTD.device.type, enabled=False):
        dtype = _at_least_float32(cell.igate.weight)
        weight = torch.cat([cell.igate.weight, cell.fgate.weight]).to(dtype)
        bias = torch.cat([cell.igate.bias, cell.fgate.bias]).to(dtype)
        gates = nn.functional.linear(torch.cat([q, k, v], -1).to(dtype), weight, bias)
        input_gate, forget_gate = gates.transpose(1, 2).chunk(2, dim=1)
    heads = cell.config.num_heads
    q, k, v = (part.view(*part.shape[:2], heads, -1).transpose(1, 2) for part in (q, k, v))
    before = None if state is None else CellState(*state.cell)
    h_BNTH, after = mlstm((q, k, v), (input_gate, forget_gate), layout, before)
    h_BTD = cell.outnorm(h_BNTH.to(cell.outnorm.weight.dtype)).transpose(1, 2).flatten(2)

    h_BTD = (h_BTD + layer.learnable_skip * conv_BTD) * silu(z_BTD)
    y_BTD = layer.dropout(layer.proj_down(h_BTD.to(layer.proj_down.weight.dtype)))
    if after is None or conv_state is None:
        return y_BTD, None
    return y_BTD, LayerState(conv_state, after)


def causal_conv(
    conv: nn.Conv1d, x_BTD: Tensor, layout: DocumentLayout, state: LayerState | None
) -> tuple[Tensor, Tensor | None]:
    """The depthwise convolution as K shifted copies, and the last K − 1 inputs as the next state.

    A copy is wiped where it reaches over a document start. Accumulates in float32.
    """
    (batch, num_positions, width), num_taps = x_BTD.shape, conv.kernel_size[0]
    weight_DK = conv.weight[:, 0].to(_at_least_float32(conv.weight))
    history = x_BTD.new_zeros(batch, num_taps - 1, width) if state is None else state.conv_BKD
    padded = torch.cat([history.to(x_BTD.dtype), x_BTD], 1)
    y_BTD = x_BTD * weight_DK[:, -1]
    if conv.bias is not None:
        y_BTD = y_BTD + conv.bias
    for distance in range(1, num_taps):
        first = num_taps - 1 - distance
        tap = padded[:, first : first + num_positions] * weight_DK[:, first]
        if layout.documents is not None:
            tap = tap.masked_fill(layout.documents.is_beyond_tap[distance - 1][..., None], 0.0)
        y_BTD = y_BTD + tap
    if state is None:
        return y_BTD, None
    last = padded[:, num_positions:].detach().clone()  # a view would keep all positions alive
    if layout.documents is not None:
        last = last.masked_fill(layout.documents.is_left_BK[..., None], 0.0)
    return y_BTD, last


def _empty_layer_state(layer: Any, batch: int) -> LayerState:
    conv = layer.conv1d.conv
    like = torch.empty(0, dtype=_at_least_float32(conv.weight), device=conv.weight.device)
    conv_state = like.new_zeros(batch, conv.kernel_size[0] - 1, conv.in_channels)
    if _is_slstm(layer):
        heads = layer.config.num_heads
        return LayerState(
            conv_state, empty_state(like.new_zeros(heads, batch, conv.in_channels // heads))
        )
    heads = layer.mlstm_cell.config.num_heads
    width = conv.in_channels // heads
    return LayerState(conv_state, empty_cell_state(batch, heads, width, like))


def _blocks(stack: nn.Module) -> Sequence[Any]:
    blocks: Sequence[Any] = stack.get_submodule("blocks")  # type: ignore[assignment]
    return blocks


def _is_slstm(layer: nn.Module) -> bool:
    return hasattr(layer, "slstm_cell")


def _at_least_float32(weight: Tensor) -> torch.dtype:
    return torch.promote_types(weight.dtype, torch.float32)
