"""Softmax attention over all earlier positions of the document: the teacher's own.

In: queries, keys and values after rotation. Out: what the teacher's layer gives to its output
projection. It is the target of the alignment, and what a layer of the kind ``attention`` computes.
Queries are taken in blocks, so a mask of T × T is never made.

Shapes: B batch, T positions, S cached positions, N heads of keys and values, G heads of queries
for each, H width of a head, L queries of a block.
"""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from stages.train_student.modeling.layers.document_masks import DocumentLayout

_BLOCK_LENGTH = 512


class KeyValueCache(NamedTuple):
    """Keys and values so far, and which of them are of the document that goes on."""

    key_BNSH: Tensor
    value_BNSH: Tensor
    is_current_BS: Tensor


def empty_cache(batch: int, num_heads: int, width: int, like: Tensor) -> KeyValueCache:
    """The cache before the first position."""
    nothing = like.new_zeros(batch, num_heads, 0, width)
    return KeyValueCache(nothing, nothing, torch.zeros(batch, 0, dtype=torch.bool).to(like.device))


def full_attention(
    query_BNGTH: Tensor,
    key_BNTH: Tensor,
    value_BNTH: Tensor,
    layout: DocumentLayout,
    cache: KeyValueCache | None,
) -> tuple[Tensor, KeyValueCache | None]:
    """Attention outputs [B, N, G, T, H] and, given a cache, the one after the last position."""
    query = query_BNGTH.flatten(1, 2)
    if cache is None and layout.documents is None:
        out = scaled_dot_product_attention(
            query, key_BNTH, value_BNTH, is_causal=True, enable_gqa=True
        )
        return out.view(query_BNGTH.shape), None
    key, value = key_BNTH, value_BNTH
    if cache is not None:
        key = torch.cat([cache.key_BNSH.to(key.dtype), key], 2)
        value = torch.cat([cache.value_BNSH.to(value.dtype), value], 2)
    # Kernels that take a mask do not take fewer heads of keys than of queries.
    group = query_BNGTH.shape[2]
    wide_key, wide_value = (part.repeat_interleave(group, 1) for part in (key, value))
    num_cached, num_positions = key.shape[2] - key_BNTH.shape[2], key_BNTH.shape[2]
    blocks = []
    for first in range(0, num_positions, _BLOCK_LENGTH):
        stop = min(first + _BLOCK_LENGTH, num_positions)
        is_seen_BLS = _visible(layout, cache, first, stop)
        blocks.append(
            scaled_dot_product_attention(
                query[:, :, first:stop],
                wide_key[:, :, : num_cached + stop],
                wide_value[:, :, : num_cached + stop],
                attn_mask=is_seen_BLS[:, None],
            )
        )
    out_BNGTH = torch.cat(blocks, 2).view(query_BNGTH.shape)
    return out_BNGTH, None if cache is None else _after(key, value, layout, cache)


def _visible(layout: DocumentLayout, cache: KeyValueCache | None, first: int, stop: int) -> Tensor:
    """Which keys, cached and new ones before ``stop``, the queries of a block see."""
    position = torch.arange(stop, device=layout.device)
    is_seen = position[None, first:, None] >= position
    if layout.documents is not None:
        index_BT = layout.documents.index_BT[:, :stop]
        is_seen = is_seen & (index_BT[:, first:, None] == index_BT[:, None])
    if cache is None:
        return is_seen
    is_cached = cache.is_current_BS[:, None].expand(-1, stop - first, -1)
    if layout.documents is not None:
        is_cached = is_cached & layout.documents.continues_BT[:, first:stop, None]
    return torch.cat([is_cached, is_seen.expand(len(is_cached), -1, -1)], 2)


def _after(
    key: Tensor, value: Tensor, layout: DocumentLayout, cache: KeyValueCache
) -> KeyValueCache:
    was_current = cache.is_current_BS
    is_current = was_current.new_ones(len(was_current), layout.num_positions)
    if layout.documents is not None:
        index_BT = layout.documents.index_BT
        was_current = was_current & layout.documents.continues_BT[:, -1:]
        is_current = index_BT == index_BT[:, -1:]
    return KeyValueCache(key.detach(), value.detach(), torch.cat([was_current, is_current], 1))
