"""The moments of the teacher's tail, rebuilt from the coefficients that a cache holds.

They are for students whose head is the teacher's: what the loss does with them is in
``losses/tail_moment``. See ``cache_format/tables/tail_moment`` for u, basis and center.

N positions, V vocabulary, D width, d basis, e = d + 1, n nodes, J components.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from stages.train_student.data.temperatures import lagrange_weights


@dataclass(frozen=True, eq=False)
class MomentTables:
    """What all positions of a run share."""

    basis_dD: Tensor
    """float32"""
    table_Vd: Tensor
    """float32, head · basisᵀ − center: the numbers of each id whose means moments are."""
    entropy_center: Tensor
    """float32 scalar, nats."""
    synthesis_Jne: Tensor
    mean_ne: Tensor
    inverse_temperatures: tuple[float, ...]


@dataclass(frozen=True)
class TailMoments:
    """The moments at N positions."""

    coefficients_NJ: Tensor
    """int16"""
    tables: MomentTables

    def chunk(self, start: int, stop: int) -> "TailMoments":
        """Those of positions ``start`` to ``stop``."""
        return TailMoments(self.coefficients_NJ[start:stop], self.tables)

    def at(self, temperature: float) -> Tensor:
        """u at a temperature, float32 [N, e]: interpolated between nodes as log-masses are.

        Interpolation is linear in u, and u in the coefficients: so it is the synthesis that is
        interpolated, once for all positions.
        """
        tables = self.tables
        weights_n = lagrange_weights(tables.inverse_temperatures, 1 / temperature)
        mean_e, synthesis_Je = (
            sum(
                (part * weight for part, weight in zip(parts, weights_n, strict=True)),
                start=torch.zeros_like(parts[0]),
            )
            for parts in (tables.mean_ne.unbind(0), tables.synthesis_Jne.unbind(1))
        )
        with torch.autocast(mean_e.device.type, enabled=False):
            return torch.addmm(mean_e, self.coefficients_NJ.float(), synthesis_Je)
