"""The sketch of hidden states: a projection of each position's, narrow enough to store.

In: hidden states of some layers at a unit's scored positions. Out: float32 [P, d], the projection
of their mean. Called by ``step``. It is taken layer by layer: the projection is linear, so no mean
of whole hidden states is ever held. Two kinds:

- random signs S, drawn anew for every unit. With E[S Sᵀ] = I, ‖Sᵀx‖² estimates ‖x‖² without bias,
  and over training every direction of the hidden space counts.
- W, the first d principal components of the first unit's hidden states: ‖Wᵀx‖² ≤ ‖x‖², and what
  lies outside of them is never seen.

P positions, D width, d sketch.
"""

import math
from collections.abc import Iterable

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from cache_format.sketch import chosen_layers, sketch_signs
from cache_format.spec import CacheSpec
from stages.cache_teacher.packing import PackedUnit
from stages.cache_teacher.teacher import Teacher

Projection = npt.NDArray[np.float32]

_ENOUGH_POSITIONS = 1 << 16
"""Positions that principal components are taken from; a width of thousands needs no more."""


class UnitSketch:
    """How the hidden states of one unit are projected."""

    def __init__(
        self, spec: CacheSpec, unit: int, projection_Dd: Projection | None, device: torch.device
    ) -> None:
        """``projection_Dd`` are the principal components, where the spec asks for them."""
        sketch, width = spec.sketch, spec.teacher.hidden_size
        self.layers: tuple[int, ...] = ()
        self._matrix_Dd = torch.empty(width, 0, device=device)
        if sketch.kind == "none":
            return
        layers = chosen_layers(sketch.hidden_states, spec.teacher.num_layers, spec.seed, unit)
        self.layers = layers
        if sketch.kind == "pca":
            assert projection_Dd is not None, "a cache with principal components has them"
            matrix_Dd = torch.from_numpy(projection_Dd)
        else:
            signs_Dd = torch.from_numpy(sketch_signs(spec.seed, unit, width, sketch.dim))
            matrix_Dd = signs_Dd.float() / math.sqrt(sketch.dim)
        self._matrix_Dd = matrix_Dd.to(device)

    def of(self, hidden_PD: Iterable[Tensor], num_positions: int) -> Tensor:
        """The projected mean of the hidden states of ``layers``, float32 [P, d].

        d is 0 where there is no sketch.
        """
        total_Pd = self._matrix_Dd.new_zeros(num_positions, self._matrix_Dd.shape[1])
        for one_PD in hidden_PD:
            total_Pd += one_PD.float() @ self._matrix_Dd
        return total_Pd / max(1, len(self.layers))


@torch.inference_mode()
def principal_components(
    teacher: Teacher, packed: PackedUnit, hidden_states: str, dim: int, rows_per_forward: int
) -> Projection:
    """The ``dim`` directions, [D, d], along which the hidden states of a unit are largest.

    Orthonormal eigenvectors of Σ h hᵀ, in falling order, over the unit's first 65,536 positions;
    the mean is not taken off, so that a sketch is linear in h. Where layers are drawn at random,
    every forward pass has its own. Raises ValueError where positions are fewer than directions.
    """
    width = teacher.source.spec.hidden_size
    moment_DD = torch.zeros(width, width, dtype=torch.float64, device=teacher.device)
    num_positions = 0
    for number, batch in enumerate(_batches(packed, rows_per_forward)):
        layers = chosen_layers(hidden_states, teacher.source.spec.num_layers, 0, number)
        _, states_BTD = teacher.forward(
            batch.token_ids_RT[:, :-1], batch.document_starts, layers=layers
        )
        mean_PD = torch.stack([state.float() for state in states_BTD]).mean(0).flatten(0, 1)
        moment_DD += (mean_PD.T @ mean_PD).double()
        num_positions += len(mean_PD)
        if num_positions >= _ENOUGH_POSITIONS:
            break
    if num_positions < dim:
        raise ValueError(
            f"sketch: {dim} principal components need as many positions, but the first unit has "
            f"{num_positions}. Raise documents_per_unit, or lower sketch_dim."
        )
    if not bool(torch.isfinite(moment_DD).all()):
        raise ValueError(
            "sketch: the teacher's hidden states are not finite, so that they have no principal "
            "components. Try another teacher_dtype (float32, bfloat16)."
        )
    vectors_Dd = torch.linalg.eigh(moment_DD.cpu()).eigenvectors.flip(1)[:, :dim]
    largest_1d = vectors_Dd.gather(0, vectors_Dd.abs().argmax(0, keepdim=True))
    components: Projection = (vectors_Dd * largest_1d.sign()).float().contiguous().numpy()
    return components


def _batches(packed: PackedUnit, num_rows: int) -> Iterable[PackedUnit]:
    for first in range(0, len(packed.token_ids_RT), num_rows):
        yield packed.rows(first, first + num_rows)
