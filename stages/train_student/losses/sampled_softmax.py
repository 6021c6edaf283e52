"""Fewer columns of a frozen head than it has, for one chunk to be trained on.

In: the ids that labels and targets of the chunk name, and the ranks of all ids by frequency. Out:
which columns to read, and for how many each stands.

What is named is there once and stands for itself. Of the others, ``num_drawn`` are drawn with
replacement from π, Zipf's law over their ranks mixed with the uniform law, and each stands for
1/(num_drawn·π) of them: importance sampling (Bengio and Senécal, IEEE Trans. Neural Networks 19,
2008), unbiased for every sum over columns. So are the normalisers; their logarithms and ratios, of
which loss and gradient are made, are so only as ``num_drawn`` grows.

V vocabulary, U named columns, M drawn ones, C = U + M.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

_UNIFORM_SHARE = 0.2  # so that no column stands for more than V/(0.2·M), however rare it was
_FIRST_RANK = 3  # Zipf's law, flattened at its head as Mandelbrot has it


@dataclass(frozen=True)
class Columns:
    """Columns of a head: the named ones in rising order, then those that were drawn."""

    ids_C: Tensor
    log_weight_C: Tensor
    """float32: log of how many columns each stands for; −inf for one that is there once more."""
    num_named: int

    def places(self, named_ids: Tensor) -> Tensor:
        """Where each of ``named_ids`` is among the columns; where it counts, if it is there twice.

        The latter is the first: behind it are those that do not count.
        """
        return torch.searchsorted(self.ids_C[: self.num_named], named_ids)


class SampledColumns:
    """Chooses columns anew for every chunk, by the device's own generator."""

    def __init__(self, ranks_V: Tensor, num_drawn: int) -> None:
        """``ranks_V``: the rank of each id, from 0, on the head's device."""
        zipf_V = 1 / (ranks_V.double() + _FIRST_RANK)
        uniform = _UNIFORM_SHARE / len(ranks_V)
        self.mixture_V = (1 - _UNIFORM_SHARE) * zipf_V / zipf_V.sum() + uniform
        self.num_drawn = num_drawn
        # How many ids are distinct is known to a GPU alone. Rather than wait for it, repetitions
        # are read too, and do not count.
        self.keeps_repetitions = ranks_V.is_cuda

    def choose(self, named_ids: Tensor) -> Columns | None:
        """Columns for a chunk that names ``named_ids``; None if all would be no more than these."""
        named_U, is_first_U = self._distinct(named_ids)
        if len(named_U) + self.num_drawn >= len(self.mixture_V):
            return None
        drawn_M, log_weight_M = self._draw(named_U)
        log_weight_U = torch.zeros_like(log_weight_M[:1]).expand(len(named_U))
        log_weight_U = log_weight_U.masked_fill(~is_first_U, -math.inf)
        log_weight_C = torch.cat((log_weight_U, log_weight_M))
        return Columns(torch.cat((named_U, drawn_M)), log_weight_C, len(named_U))

    def _distinct(self, named_ids: Tensor) -> tuple[Tensor, Tensor]:
        """The ids in rising order, and whether each is the first of its kind."""
        named_U = named_ids.flatten().sort().values
        is_first_U = torch.ones_like(named_U, dtype=torch.bool)
        is_first_U[1:] = named_U[1:] != named_U[:-1]
        if self.keeps_repetitions:
            return named_U, is_first_U
        return named_U[is_first_U], is_first_U[is_first_U]

    def _draw(self, named_U: Tensor) -> tuple[Tensor, Tensor]:
        """Ids that are not named, and the logarithms of what they stand for."""
        others_V = self.mixture_V.index_fill(0, named_U, 0.0)
        sums_V = others_V.cumsum(0)
        total, shape = sums_V[-1], (self.num_drawn,)
        uniform_M = torch.rand(shape, dtype=torch.float64, device=sums_V.device)
        drawn_M = torch.searchsorted(sums_V, uniform_M * total, right=True)
        drawn_M = drawn_M.clamp_max(len(sums_V) - 1)
        expected_M = others_V[drawn_M] / total * self.num_drawn
        # A GPU's sums may be off by their last bit just where a named id adds nothing.
        log_weight_M = (-expected_M.log()).masked_fill(expected_M <= 0, -math.inf)
        return drawn_M, log_weight_M.float()
