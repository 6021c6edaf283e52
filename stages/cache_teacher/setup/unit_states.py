"""The last hidden states of a cache's first unit, which fits are made to.

N positions, D width.
"""

import torch
from torch import Tensor

from stages.cache_teacher.corpus.packing import PackedUnit
from stages.cache_teacher.teacher.teacher import Teacher

MAX_POSITIONS = 1 << 15
"""Whose states are kept."""


def scored_states(teacher: Teacher, packed: PackedUnit, num_rows: int) -> Tensor:
    """The last hidden states of the unit's first scored positions, float32 [N, D]; ``num_rows`` of
    it are in one forward pass."""
    parts, num_positions = [], 0
    for first in range(0, len(packed.token_ids_RT), num_rows):
        batch = packed.rows(first, first + num_rows)
        hidden_BTD, _ = teacher.forward(
            batch.token_ids_RT[:, :-1], batch.document_starts, layers=()
        )
        is_scored_BT = torch.from_numpy(batch.scored_RT()).to(hidden_BTD.device)
        parts.append(hidden_BTD[is_scored_BT].float())
        num_positions += len(parts[-1])
        if num_positions >= MAX_POSITIONS:
            break
    return torch.cat(parts)[:MAX_POSITIONS]


def spread_indices(num_positions: int, at_most: int) -> Tensor:
    """Indices of positions, evenly spread."""
    return torch.linspace(0, num_positions - 1, min(num_positions, at_most)).round().long()


def with_fixed_signs(vectors_DX: Tensor) -> Tensor:
    """Eigenvectors, in columns, each with the sign that makes its largest number positive."""
    largest_1X = vectors_DX.gather(0, vectors_DX.abs().argmax(0, keepdim=True))
    return vectors_DX * largest_1X.sign()
