"""The sketch of hidden states: Sᵀh, narrow enough to store and unbiased in its norm.

In: mean hidden states [P, D] of a unit's positions. Out: float32 [P, d]. Called by ``run``. With
E[S Sᵀ] = I, ‖Sᵀx‖² estimates ‖x‖² without bias; S is drawn anew for every unit, so that over
training every direction of the hidden space counts. P positions, D width, d sketch.
"""

import math

import torch

from cache_format.sketch import sketch_signs
from cache_format.spec import SketchSpec
from stages.cache_teacher.targets import refuse_non_finite


def sketch_matrix(
    spec: SketchSpec, width: int, seed: int, unit: int, device: torch.device
) -> torch.Tensor:
    """S of one unit: float32 [D, d], signs over √d."""
    signs_Dd = torch.from_numpy(sketch_signs(seed, unit, width, spec.dim))
    return signs_Dd.to(device, torch.float32).div_(math.sqrt(spec.dim))


def sketch(mean_hidden_PD: torch.Tensor, matrix_Dd: torch.Tensor) -> torch.Tensor:
    """Sᵀh for every position, float32 [P, d]. Raises NonFiniteError if a hidden state is not."""
    sketch_Pd = mean_hidden_PD.float() @ matrix_Dd
    refuse_non_finite(sketch_Pd)
    return sketch_Pd
