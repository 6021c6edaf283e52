"""Principal components of a teacher's hidden states, for caches that are projected on them.

In: the teacher, and the rows of a cache's first unit. Out: W, [D, d]. T positions of a row, P of a
forward pass, D width, d sketch.
"""

from collections.abc import Iterable

import torch

from cache_format.tables.random_projection import chosen_layers
from stages.cache_teacher.corpus.packing import PackedUnit
from stages.cache_teacher.setup.unit_states import with_fixed_signs
from stages.cache_teacher.targets.hidden_projection import Projection
from stages.cache_teacher.teacher.teacher import Teacher

_ENOUGH_POSITIONS = 1 << 16
"""Positions that they are taken from; a width of thousands needs no more."""


@torch.inference_mode()
def principal_components(
    teacher: Teacher, packed: PackedUnit, hidden_states: str, dim: int, rows_per_forward: int
) -> Projection:
    """The ``dim`` directions, [D, d], along which the hidden states of a unit are largest.

    Orthonormal eigenvectors of Σ h hᵀ, in falling order, over the unit's first 65,536 positions
    that are no context; the mean is not taken off, so that a sketch is linear in h. Where layers
    are drawn at random, every forward pass has its own. Raises ValueError where positions are fewer
    than directions.
    """
    width = teacher.source.spec.hidden_size
    moment_DD = torch.zeros(width, width, dtype=torch.float64, device=teacher.device)
    num_positions = 0
    for number, batch in enumerate(_batches(packed, rows_per_forward)):
        layers = chosen_layers(hidden_states, teacher.source.spec.num_layers, 0, number)
        _, states_BTD = teacher.forward(
            batch.token_ids_RT[:, :-1], batch.document_starts, layers=layers
        )
        states_LPD = torch.stack([state.float().flatten(0, 1) for state in states_BTD])
        if batch.is_context_RT is not None:
            is_learned_P = torch.from_numpy(~batch.is_context_RT.ravel())
            states_LPD = states_LPD[:, is_learned_P.to(states_LPD.device)]
        if not hidden_states.startswith("each:"):
            states_LPD = states_LPD.mean(0, keepdim=True)
        for state_PD in states_LPD:
            moment_DD += (state_PD.T @ state_PD).double()
        num_positions += states_LPD.shape[1]
        if num_positions >= _ENOUGH_POSITIONS:
            break
    if num_positions < dim:
        raise ValueError(
            f"sketch: {dim} principal components need at least {dim} positions, but the first unit "
            f"has {num_positions}. Raise documents_per_unit, or lower hidden_projection_dim."
        )
    if not bool(torch.isfinite(moment_DD).all()):
        raise ValueError(
            "sketch: the teacher's hidden states are not finite, so they have no principal "
            "components. Try another teacher_dtype (float32, bfloat16)."
        )
    vectors_Dd = torch.linalg.eigh(moment_DD.cpu()).eigenvectors.flip(1)[:, :dim]
    components: Projection = with_fixed_signs(vectors_Dd).float().contiguous().numpy()
    return components


def _batches(packed: PackedUnit, num_rows: int) -> Iterable[PackedUnit]:
    for first in range(0, len(packed.token_ids_RT), num_rows):
        yield packed.rows(first, first + num_rows)
