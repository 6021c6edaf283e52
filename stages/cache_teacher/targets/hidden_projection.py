"""The sketch of hidden states: a projection of each position's, narrow enough to store.

In: hidden states of some layers at a unit's scored positions. Out: float32 [P, L, d], the
projection of their mean (L is 1), or of each. It is taken layer by layer: the projection is linear,
so no mean of whole hidden states is ever held. Two kinds:

- random signs S, drawn anew for every unit. With E[S Sᵀ] = I, ‖Sᵀx‖² estimates ‖x‖² without bias,
  and over training every direction of the hidden space counts.
- W, the first d principal components of the first unit's hidden states: ‖Wᵀx‖² ≤ ‖x‖², and what
  lies outside of them is never seen.

P positions, L projected states, D width, d sketch.
"""

import math
from collections.abc import Callable, Iterable

import numpy as np
import numpy.typing as npt
from torch import Tensor

from cache_format.metadata.spec import CacheSpec
from cache_format.tables.random_projection import chosen_layers, sketch_signs

Projection = npt.NDArray[np.float32]
Place = Callable[[Projection], Tensor]


class UnitSketch:
    """How the hidden states of one unit are projected."""

    def __init__(
        self, spec: CacheSpec, unit: int, projection_Dd: Projection | None, place: Place
    ) -> None:
        """``projection_Dd`` are the principal components, where the spec asks for them.

        ``place`` brings a matrix to the device.
        """
        sketch, width = spec.sketch, spec.teacher.hidden_size
        self.layers: tuple[int, ...] = ()
        self._num_states = sketch.num_states
        if sketch.kind == "none":
            self._matrix_Dd = place(np.empty((width, 0), np.float32))
            return
        layers = chosen_layers(sketch.hidden_states, spec.teacher.num_layers, spec.seed, unit)
        self.layers = layers
        if sketch.kind == "pca":
            assert projection_Dd is not None, "a cache with principal components has them"
            self._matrix_Dd = place(projection_Dd)
        else:
            signs_Dd = sketch_signs(spec.seed, unit, width, sketch.dim).astype(np.float32)
            self._matrix_Dd = place(signs_Dd / np.float32(math.sqrt(sketch.dim)))

    def of(self, hidden_PD: Iterable[Tensor], num_positions: int) -> Tensor:
        """The projected hidden states of ``layers`` or their mean, float32 [P, L, d].

        d is 0 where there is no sketch.
        """
        dim = self._matrix_Dd.shape[1]
        sums_PLd = self._matrix_Dd.new_zeros(num_positions, self._num_states, dim)
        for number, one_PD in enumerate(hidden_PD):
            sums_PLd[:, number % self._num_states] += one_PD.float() @ self._matrix_Dd
        return sums_PLd / max(1, len(self.layers) // self._num_states)
