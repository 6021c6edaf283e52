"""Softmax attention to a sliding window and to a document's first positions, its sinks.

In: queries, keys and values, position already in them. Out: attention outputs and, where a state
was given, the state after the last position, of constant size. Position t sees positions
t − W + 1 to t of its document and the first S of its document, under one softmax
(arXiv 2603.15590). Documents of a row see nothing of each other.

Scores and softmax are at least float32, whatever the kernel of ``scaled_dot_product_attention``
multiplies. Linear in T, forward and backward (see ``window_bands``).

Shapes: B batch, N heads of keys and values, G queries that share a head, T positions, R = W − 1
recent positions, S sinks, H width of a head.
"""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from stages.train_student.modeling.layers.document_masks import DocumentLayout
from stages.train_student.modeling.layers.window_bands import Band, BandAttention, Block, sinks


class WindowState(NamedTuple):
    """State after a position: the last W − 1 keys and values, oldest first, and the sinks'.

    0 where the document had none yet; ``num_seen_B`` says how many positions it had, so also the
    position of the next one.
    """

    key_BNRH: Tensor
    value_BNRH: Tensor
    sink_key_BNSH: Tensor
    sink_value_BNSH: Tensor
    num_seen_B: Tensor

    def rows(self, indices: Tensor) -> "WindowState":
        """The state of the batch rows ``indices``, in that order."""
        return WindowState(*(part.index_select(0, indices) for part in self))


def empty_window_state(
    batch: int, num_heads: int, width: int, band: tuple[int, int], like: Tensor
) -> WindowState:
    """The state before the first position of a document; ``band`` are window and sinks."""
    window, num_sinks = band
    recent = like.new_zeros(batch, num_heads, window - 1, width)
    first = like.new_zeros(batch, num_heads, num_sinks, width)
    return WindowState(recent, recent, first, first, like.new_zeros(batch, dtype=torch.long))


def sliding_window_attention(
    query_BNGTH: Tensor,
    key_BNTH: Tensor,
    value_BNTH: Tensor,
    window: int,
    num_sinks: int,
    layout: DocumentLayout,
    state: WindowState | None,
    scale: float | None = None,
) -> tuple[Tensor, WindowState | None]:
    """Attention outputs [B, N, G, T, H] like the values and, given a state, the one after them.

    ``window`` W at least 1, ``num_sinks`` S at least 0, ``scale`` of the scores 1/√H if not given.
    All is computed in the values' precision but scores and softmax. No gradient flows into or out
    of states.
    """
    dtype = value_BNTH.dtype
    query, key, value = query_BNGTH.to(dtype), key_BNTH.to(dtype), value_BNTH
    earlier_sinks = None
    if state is not None:
        state = WindowState(*(part.detach() for part in state))
        if layout.num_positions == 1 and layout.documents is None:
            return _step((query, key, value), window, state, scale)
        key = torch.cat([state.key_BNRH.to(dtype), key], 2)
        value = torch.cat([state.value_BNRH.to(dtype), value], 2)
        earlier_sinks = state.sink_key_BNSH.to(dtype), state.sink_value_BNSH.to(dtype)
    band = Band(
        window=window,
        num_sinks=num_sinks,
        first_BT=_first_positions(layout, state),
        num_before=key.shape[2] - layout.num_positions,
        scale=scale,
    )
    with torch.autocast(value.device.type, enabled=False):
        attended = BandAttention.apply(  # type: ignore[no-untyped-call]
            query, key, value, earlier_sinks, band
        )
        if state is None:
            return attended, None
        return attended, _state_after(key.detach(), value.detach(), state, band)


def _step(
    qkv: tuple[Tensor, Tensor, Tensor], window: int, state: WindowState, scale: float | None
) -> tuple[Tensor, WindowState]:
    """A single position of a document that goes on: the state is its band.

    Generation waits for operations on little data, of which this has a quarter of what blocks need.
    """
    query_BNGTH, *new = qkv
    recent = state.key_BNRH, state.value_BNRH
    first = state.sink_key_BNSH, state.sink_value_BNSH
    num_seen_B1, num_sinks = state.num_seen_B[:, None], first[0].shape[2]
    position_S = torch.arange(num_sinks, device=num_seen_B1.device)
    age_W = torch.arange(window - 1, -1, -1, device=num_seen_B1.device)
    # A sink that is still in the window is seen there.
    is_seen_BE = torch.cat([num_seen_B1 - position_S >= window, age_W <= num_seen_B1], 1)
    key_BNEH, value_BNEH = (
        torch.cat([sink.to(x.dtype), old.to(x.dtype), x], 2)
        for sink, old, x in zip(first, recent, new, strict=True)
    )
    with torch.autocast(query_BNGTH.device.type, enabled=False):
        attended_BNGH = scaled_dot_product_attention(
            query_BNGTH.squeeze(3),
            key_BNEH,
            value_BNEH,
            attn_mask=is_seen_BE[:, None, None],
            scale=scale,
        )
    is_own_BS = (position_S == num_seen_B1)[:, None, :, None]
    # Copies, because a view would keep the sinks in memory a second time.
    kept = [part.detach()[:, :, num_sinks + 1 :].clone() for part in (key_BNEH, value_BNEH)]
    following = [torch.where(is_own_BS, x.detach(), s) for x, s in zip(new, first, strict=True)]
    after = WindowState(kept[0], kept[1], following[0], following[1], state.num_seen_B + 1)
    return attended_BNGH.unsqueeze(3), after


def _first_positions(layout: DocumentLayout, state: WindowState | None) -> Tensor:
    """Where each position's document begins, counted from the call's first: [1 or B, T]."""
    if layout.documents is None:
        if state is None:
            return torch.zeros(1, 1, dtype=torch.long, device=layout.device).expand(
                1, layout.num_positions
            )
        return -state.num_seen_B[:, None].expand(-1, layout.num_positions)
    documents = layout.documents
    if state is None:
        return documents.first_BT
    return torch.where(documents.continues_BT, -state.num_seen_B[:, None], documents.first_BT)


@torch.no_grad()
def _state_after(key: Tensor, value: Tensor, state: WindowState, band: Band) -> WindowState:
    """Nothing of an earlier document stays."""
    num_positions = key.shape[2] - band.num_before
    num_seen_B = num_positions - band.first_BT[:, -1]
    last = Block(num_positions - 1, num_positions, num_positions - 1, band)
    position_S = torch.arange(band.num_sinks, device=key.device)
    no_sink = (position_S >= num_seen_B[:, None])[:, None, :, None]
    age_R = torch.arange(band.window - 1, 0, -1, device=key.device)
    not_recent = (age_R > num_seen_B[:, None])[:, None, :, None]

    def recent(x_BNTH: Tensor) -> Tensor:
        return x_BNTH[:, :, x_BNTH.shape[2] - band.window + 1 :].masked_fill(not_recent, 0.0)

    def first(x_BNTH: Tensor, before_BNSH: Tensor) -> Tensor:
        return sinks(x_BNTH, last, before_BNSH.to(x_BNTH.dtype)).masked_fill(no_sink, 0.0)

    return WindowState(
        recent(key),
        recent(value),
        first(key, state.sink_key_BNSH),
        first(value, state.sink_value_BNSH),
        num_seen_B,
    )
