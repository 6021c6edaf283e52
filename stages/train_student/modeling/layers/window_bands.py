"""Attention of blocks of queries to the band of keys that each block can see.

In: queries, keys, values, and from which position on each one's document lies. Out: attention
outputs. Compute grows with T (W + L), and so does what is kept for the backward: queries, keys and
values alone. A block's scores are computed again there, so that they exist for one block at a time.

Keys are numbered like queries; those before the call, from the state, have numbers below 0.

Shapes: B batch (1 where rows are alike, in masks), N heads of keys and values, G queries that share
a head, T positions, R keys before the call, L positions of a block, E keys of a block (its sinks
first), S sinks, W window, H width of a head.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import scaled_dot_product_attention

# Enough queries to fill a matrix product; W + L keys are read for W that are seen.
_MOST_IN_BLOCK, _LEAST_IN_BLOCK = 256, 64


@dataclass(frozen=True, kw_only=True)
class Band:
    """What may be seen: the last ``window`` positions of the document, and its first ``num_sinks``.

    ``first_BT``: number of the first position of each query's document, below 0 if it began before
    the call. ``num_before``: R.
    """

    window: int
    num_sinks: int
    first_BT: Tensor
    num_before: int
    scale: float | None

    def blocks(self, num_positions: int) -> Iterator["Block"]:
        """The queries in blocks of even length."""
        most = min(_MOST_IN_BLOCK, max(_LEAST_IN_BLOCK, self.window))
        num = -(-num_positions // most)
        length = -(-num_positions // num)
        for start in range(0, num_positions, length):
            oldest = max(start - self.window + 1, -self.num_before)
            yield Block(start, min(start + length, num_positions), oldest, self)


@dataclass(frozen=True)
class Block:
    """Queries ``start`` to ``stop``, and keys ``oldest`` to ``stop`` beside the sinks.

    Only sinks of the first query's document may lie before ``oldest``: any other document begins
    within the block.
    """

    start: int
    stop: int
    oldest: int
    band: Band

    def sink_BS(self) -> Tensor:
        """Numbers of the first query's sinks."""
        first_B1 = self.band.first_BT[:, self.start, None]
        return first_B1 + torch.arange(self.band.num_sinks, device=first_B1.device)

    def is_seen_BLE(self) -> Tensor:
        """May a query see a key? Sinks after ``oldest`` are seen there, not a second time."""
        band, device = self.band, self.band.first_BT.device
        first_BL1 = band.first_BT[:, self.start : self.stop, None]
        query_L1 = torch.arange(self.start, self.stop, device=device)[:, None]
        key_E = torch.arange(self.oldest, self.stop, device=device)
        is_near = (key_E > query_L1 - band.window) | (key_E < first_BL1 + band.num_sinks)
        is_seen = is_near & (key_E <= query_L1) & (key_E >= first_BL1)
        is_same_BL1 = first_BL1 == first_BL1[:, :1]
        is_sink_seen = is_same_BL1 & (self.sink_BS() < self.oldest)[:, None]
        return torch.cat([is_sink_seen, is_seen], -1)


class BandAttention(torch.autograd.Function):
    """Arguments: q [B, N, G, T, H], k and v [B, N, R + T, H], first sinks of documents that began
    before the call, k and v [B, N, S, H] (constants), and the band. Returns [B, N, G, T, H]."""

    @staticmethod
    def forward(
        ctx: Any,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        earlier_sinks: tuple[Tensor, Tensor] | None,
        band: Band,
    ) -> Tensor:
        ctx.earlier_sinks, ctx.band = earlier_sinks, band
        ctx.save_for_backward(q, k, v)
        attended = torch.empty_like(q)
        for block in band.blocks(q.shape[3]):
            attended[..., block.start : block.stop, :] = _attend(
                *_inputs(block, (q, k, v), earlier_sinks), block
            )
        return attended

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        q, k, v = ctx.saved_tensors
        band: Band = ctx.band
        wide = torch.promote_types(k.dtype, torch.float32)  # many blocks add to one key's gradient
        grad_q = torch.empty_like(q)
        grad_k, grad_v = torch.zeros_like(k, dtype=wide), torch.zeros_like(v, dtype=wide)
        with torch.autocast(q.device.type, enabled=False):
            for block in band.blocks(q.shape[3]):
                inputs = _inputs(block, (q, k, v), ctx.earlier_sinks)
                rows = slice(block.start, block.stop)
                with torch.enable_grad():
                    of_q, of_k, of_v = (part.detach().requires_grad_() for part in inputs)
                    attended = _attend(of_q, of_k, of_v, block)
                grads = torch.autograd.grad(attended, (of_q, of_k, of_v), grad[..., rows, :])
                grad_q[..., rows, :] = grads[0]
                _add_to_keys(grad_k, grads[1], block)
                _add_to_keys(grad_v, grads[2], block)
        return grad_q, grad_k.to(k.dtype), grad_v.to(v.dtype), None, None


def _attend(q: Tensor, k: Tensor, v: Tensor, block: Block) -> Tensor:
    """One softmax over the keys of a block: [B, N, G, L, H]."""
    is_seen_B1RE = block.is_seen_BLE().repeat(1, q.shape[2], 1)[:, None]
    attended = scaled_dot_product_attention(
        q.flatten(2, 3), k, v, attn_mask=is_seen_B1RE, scale=block.band.scale
    )
    return attended.view_as(q)


def _inputs(
    block: Block, qkv: tuple[Tensor, Tensor, Tensor], earlier: tuple[Tensor, Tensor] | None
) -> tuple[Tensor, Tensor, Tensor]:
    q, k, v = qkv
    keys = slice(block.band.num_before + block.oldest, block.band.num_before + block.stop)
    of_state = (None, None) if earlier is None else earlier
    return (
        q[..., block.start : block.stop, :],
        torch.cat([sinks(k, block, of_state[0]), k[:, :, keys]], 2),
        torch.cat([sinks(v, block, of_state[1]), v[:, :, keys]], 2),
    )


def sinks(x_BNTH: Tensor, block: Block, earlier_BNSH: Tensor | None) -> Tensor:
    """Keys or values of a block's sinks [B, N, S, H]; arbitrary ones for those after it."""
    sink_BS = block.sink_BS()
    own = x_BNTH.gather(2, _row_index(sink_BS, x_BNTH, block.band.num_before))
    if earlier_BNSH is None:
        return own
    return torch.where((sink_BS < 0)[:, None, :, None], earlier_BNSH, own)


def _add_to_keys(grad_BNTH: Tensor, grad_BNEH: Tensor, block: Block) -> None:
    before, num_sinks = block.band.num_before, block.band.num_sinks
    of_sinks, of_band = grad_BNEH.to(grad_BNTH.dtype).tensor_split([num_sinks], 2)
    grad_BNTH[:, :, before + block.oldest : before + block.stop] += of_band
    sink_BS = block.sink_BS()
    of_sinks = of_sinks.masked_fill((sink_BS < 0)[:, None, :, None], 0.0)
    grad_BNTH.scatter_add_(2, _row_index(sink_BS, grad_BNTH, before), of_sinks)


def _row_index(sink_BS: Tensor, x_BNTH: Tensor, num_before: int) -> Tensor:
    """Sinks' numbers as indices for ``gather``; those before the call as the call's first."""
    batch, heads, length, width = x_BNTH.shape
    index_BS = sink_BS.clamp(min=0).add(num_before).clamp(max=length - 1)
    return index_BS[:, None, :, None].expand(batch, heads, -1, width)
