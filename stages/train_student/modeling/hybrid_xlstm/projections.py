"""The teacher's queries, keys and values, and their rotation by position.

Whatever a family adds is where the family has it: biases, norms of single heads (Qwen3) or of all
heads together (OLMo 2), and the angles of its own rotary embedding.

Shapes: B batch, T positions, D width, N heads of keys and values, G heads of queries for each,
H width of a head.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

Rotation = tuple[Tensor, Tensor]
"""Cosines and sines of the angles, [B or 1, T, H] each."""


class Projected(NamedTuple):
    """Queries, keys and values, heads before positions."""

    query_BNGTH: Tensor
    key_BNTH: Tensor
    value_BNTH: Tensor


def project(attention: Any, x_BTD: Tensor, num_groups: int) -> Projected:
    """Before rotation, by the projections and norms of ``attention``; ``num_groups`` is N."""
    width = attention.head_width
    query = _normed(attention.q_norm, attention.q_proj(x_BTD), width)
    key = _normed(attention.k_norm, attention.k_proj(x_BTD), width)
    value = attention.v_proj(x_BTD)
    batch, num_positions = x_BTD.shape[:2]
    return Projected(
        query.view(batch, num_positions, num_groups, -1, width).permute(0, 2, 3, 1, 4),
        key.view(batch, num_positions, num_groups, width).transpose(1, 2),
        value.view(batch, num_positions, num_groups, width).transpose(1, 2),
    )


def rotated(x: Tensor, rotation: Rotation) -> Tensor:
    """x [B, ..., T, H] turned by the angles of its positions (Su et al., arXiv 2104.09864)."""
    shape = (len(rotation[0]), *[1] * (x.ndim - 3), *rotation[0].shape[1:])
    cosine, sine = (part.view(shape) for part in rotation)
    first, second = x.chunk(2, dim=-1)
    return (x * cosine + torch.cat([-second, first], -1) * sine).to(x.dtype)


def _normed(norm: nn.Module | None, x_BTD: Tensor, head_width: int) -> Tensor:
    if norm is None:
        return x_BTD
    weight: Any = norm.weight
    if weight.numel() == x_BTD.shape[-1]:
        normed: Tensor = norm(x_BTD)
        return normed
    by_head: Tensor = norm(x_BTD.view(*x_BTD.shape[:-1], -1, head_width))
    return by_head.flatten(-2)
