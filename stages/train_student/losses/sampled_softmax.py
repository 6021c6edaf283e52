"""Sample the columns of a frozen head that one chunk is trained on.

In: the target tokens of the chunk and the ranks of all ids by frequency. Out: which columns to
read, and how many ids each stands for.

Target tokens are there once and stand for themselves. Of the other ids, ``num_drawn`` are drawn
with replacement from π, a mixture of Zipf's law over their ranks and the uniform distribution. Each
stands for 1/(num_drawn·π) ids: importance sampling (Bengio and Senécal, IEEE Trans. Neural Networks
19, 2008), unbiased for every sum over ids. So the normalizers are unbiased. Their logarithms and
ratios, which loss and gradient are made of, are unbiased only in the limit of many draws.

V vocabulary, U target tokens, M drawn ids, C = U + M columns.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

_UNIFORM_SHARE = 0.2  # so that no column stands for more than V/(0.2·M), however rare it was
_FIRST_RANK = 3  # π ∝ 1/(rank + 3): flattened at its head (Zipf-Mandelbrot)


@dataclass(frozen=True)
class Columns:
    """Columns of a head: target tokens in rising order, then those that were drawn."""

    ids_C: Tensor
    log_weight_C: Tensor
    """float32: log of how many ids each stands for; −inf for a repetition, which does not count."""
    num_targets: int

    def places(self, target_ids: Tensor) -> Tensor:
        """The column of each of ``target_ids``. Of repetitions the first one, which counts."""
        return torch.searchsorted(self.ids_C[: self.num_targets], target_ids)


class SampledColumns:
    """Chooses columns anew for every chunk, by the device's own generator."""

    def __init__(self, ranks_V: Tensor, num_drawn: int) -> None:
        """``ranks_V``: the rank of each id, from 0, on the head's device."""
        zipf_V = 1 / (ranks_V.double() + _FIRST_RANK)
        uniform = _UNIFORM_SHARE / len(ranks_V)
        self.mixture_V = (1 - _UNIFORM_SHARE) * zipf_V / zipf_V.sum() + uniform
        self.num_drawn = num_drawn
        # Dropping repetitions needs their number on the host, which would wait for the GPU. There
        # they are read as well, with a weight of 0.
        self.keeps_repetitions = ranks_V.is_cuda

    def choose(self, target_ids: Tensor) -> Columns | None:
        """Columns for a chunk with these target tokens; None if all columns are no more."""
        target_U, is_first_U = self._distinct(target_ids)
        if len(target_U) + self.num_drawn >= len(self.mixture_V):
            return None
        drawn_M, log_weight_M = self._draw(target_U)
        log_weight_U = torch.zeros_like(log_weight_M[:1]).expand(len(target_U))
        log_weight_U = log_weight_U.masked_fill(~is_first_U, -math.inf)
        log_weight_C = torch.cat((log_weight_U, log_weight_M))
        return Columns(torch.cat((target_U, drawn_M)), log_weight_C, len(target_U))

    def _distinct(self, target_ids: Tensor) -> tuple[Tensor, Tensor]:
        """The ids in rising order, and whether each is the first of its kind."""
        target_U = target_ids.flatten().sort().values
        is_first_U = torch.ones_like(target_U, dtype=torch.bool)
        is_first_U[1:] = target_U[1:] != target_U[:-1]
        if self.keeps_repetitions:
            return target_U, is_first_U
        return target_U[is_first_U], is_first_U[is_first_U]

    def _draw(self, target_U: Tensor) -> tuple[Tensor, Tensor]:
        """Other ids, drawn, and the logarithms of how many each stands for."""
        others_V = self.mixture_V.index_fill(0, target_U, 0.0)
        sums_V = others_V.cumsum(0)
        total, shape = sums_V[-1], (self.num_drawn,)
        uniform_M = torch.rand(shape, dtype=torch.float64, device=sums_V.device)
        drawn_M = torch.searchsorted(sums_V, uniform_M * total, right=True)
        drawn_M = drawn_M.clamp_max(len(sums_V) - 1)
        expected_M = others_V[drawn_M] / total * self.num_drawn
        # A GPU's cumulative sum may be off by its last bit, and a target token be drawn.
        log_weight_M = (-expected_M.log()).masked_fill(expected_M <= 0, -math.inf)
        return drawn_M, log_weight_M.float()
