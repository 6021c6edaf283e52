"""Vectors of a device become coefficients of a transform of the cache.

P positions, U width of a vector, J components.
"""

import torch
from torch import Tensor

from cache_format.coding.coefficients import MAX_VALUE
from cache_format.tables.linear_transform import LinearTransform


class Analysis:
    """The analysis of a transform, on a device."""

    def __init__(self, transform: LinearTransform, device: torch.device) -> None:
        self._mean_U = torch.from_numpy(transform.mean).to(device)
        self._analysis_UJ = torch.from_numpy(transform.analysis).to(device).T

    def __call__(self, vectors_PU: Tensor) -> tuple[Tensor, Tensor]:
        """The coefficients before they are rounded, [P, J], and whether all numbers of a position
        are finite, [P].

        In float32, whatever the precision of the vectors.
        """
        values_PJ = (vectors_PU.float() - self._mean_U) @ self._analysis_UJ
        is_finite_P = torch.isfinite(values_PJ).all(1)
        return values_PJ.nan_to_num_(0.0).clamp_(-MAX_VALUE, MAX_VALUE), is_finite_P
