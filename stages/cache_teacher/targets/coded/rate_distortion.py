"""Coefficients of a hidden state that cost few bits for what they lose, position by position.

Rounding to the nearest is best if every position weighs an error alike. It does not: an error e of
a state changes the softmax at temperature T by a KL of ½ eᵀF e, F = Σ p u uᵀ − m mᵀ over T², where
u are the rows of the head, p the position's own probabilities and m = Σ p u. A writer knows p; a
reader need not. So of the whole numbers c around a state's coefficients y this looks for those that
minimize

    ½ (c − y)ᵀ F (c − y) + λ · bits(c)

by coordinate descent: component after component takes the best of its value now, the two whole
numbers next to its optimum given all the others, and 0. (Rate-distortion optimized quantization, as
video encoders do; Sullivan and Wiegand, IEEE Signal Processing Magazine 15(6), 1998.) Bits are
those of the position's class: before each pass, the one in which its numbers take the fewest.

F is the mean over T ∈ {1, 2}. It is made of the position's largest logits, exactly, and of its tail
as if that were spread evenly over the vocabulary and its coordinates were uncorrelated: its mass
times the mean square of each coordinate of a row of the head. (The mean of F is the identity, and
the whole second moment is no better.)
λ is what a bit is worth at the step of nearest rounding: the loss Δ²/24 of a component falls by a
factor of 4 with each bit, which is ln 2/12 · Δ² for the first.

Shapes: P positions, n of them at once; J components in B blocks of b; V vocabulary, K kept logits,
N temperatures, R = K + N rows; L classes of positions, X values of a coefficient.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Literal

import torch
from torch import Tensor

from cache_format.coding.coefficients import MAX_VALUE
from cache_format.metadata.spec_parts.targets import KeptLogits, TargetSpec
from stages.cache_teacher.targets import top_k
from stages.cache_teacher.targets.target_maker import IdTargets, TargetMaker
from stages.cache_teacher.targets.teacher_head import Head
from stages.compute.compiling import Compiled

METRIC_TEMPERATURES = (1.0, 2.0)
"""Over which F is the mean."""

_NUM_KEPT = 128
_INVERSE_TEMPERATURES = tuple(sorted(1 / temperature for temperature in METRIC_TEMPERATURES))
_WEIGHTS = tuple(s * s / len(_INVERSE_TEMPERATURES) for s in _INVERSE_TEMPERATURES)
_LEAST_TAIL = 0.01
"""What the tail's mass counts at least: where p is all but certain, F is nearly 0, and a large
error, which is not free, would seem so."""
_NATS_PER_BIT = math.log(2) / 12  # at a step of 1
_SWEEPS = 2
_BLOCK = 8
_NUM_FLOATS = 1 << 25
"""Of the positions' rows at once."""
_NUM_FLOATS_ON_GPU = 1 << 28


class RateDistortion:
    """Finds the coefficients of states of one teacher and one transform."""

    def __init__(
        self,
        head: Head,
        synthesis_JD: Tensor,
        *,
        chunk: int,
        compile: Literal["auto", "on", "off"],
    ) -> None:
        """``synthesis_JD`` is that of coordinates, whatever the step. ``chunk`` positions have
        their logits at once."""
        kept = KeptLogits(
            top_k=min(_NUM_KEPT, head.vocab_size),
            keep_mass=1.0,
            inverse_temperatures=_INVERSE_TEMPERATURES,
        )
        reduction = partial(top_k.reduce, spec=TargetSpec(kind="top_k", kept=kept))
        self._logits = TargetMaker(head, reduction, chunk=chunk, compile=compile)
        self._descend = Compiled(
            _descend,
            compile,
            head.device,
            what="hidden states are coded",
            setting="cache_teacher.compile",
        )
        self._weights_N = torch.tensor(_WEIGHTS, device=head.device)
        num_padding = -len(synthesis_JD) % _BLOCK
        padded_JD = torch.nn.functional.pad(synthesis_JD, (0, 0, 0, num_padding))
        weight_VD = head.weight_VD
        rows_VJ = weight_VD.float() @ padded_JD.to(head.device).T
        rows_VJ -= rows_VJ.mean(0)
        self._tail_weights = torch.split(rows_VJ.square().mean(0), _BLOCK)
        rows_VBb = rows_VJ.view(len(rows_VJ), -1, _BLOCK)
        self._rows_BVb = rows_VBb.transpose(0, 1).to(weight_VD.dtype).contiguous()

    def compile(self) -> None:
        """Compile what is to be compiled."""
        self._logits.compile(0)

    def largest(
        self, hidden_PD: Tensor, labels_P: Tensor, check: Callable[[], None] = lambda: None
    ) -> IdTargets:
        """The largest logits of P positions, which say what an error of each costs."""
        return self._logits.make(hidden_PD, labels_P, labels_P.new_empty(len(labels_P), 0), check)

    def coefficients(
        self,
        values_PJ: Tensor,
        logits: IdTargets,
        bits_LJX: Tensor,
        check: Callable[[], None] = lambda: None,
    ) -> Tensor:
        """Whole numbers as float32, [P, J], for ``values_PJ``, coordinates in units of the step.

        ``bits_LJX`` is what each value costs in a class: −⌊X/2⌋ … ⌊X/2⌋, as much as the outermost
        beyond.
        """
        num_components = values_PJ.shape[1]
        num_padding = len(self._rows_BVb) * _BLOCK - num_components
        values_PJ = torch.nn.functional.pad(values_PJ, (0, num_padding))
        bits_LJX = torch.nn.functional.pad(bits_LJX, (0, 0, 0, num_padding))
        prices = [part.contiguous() for part in torch.split(_NATS_PER_BIT * bits_LJX, _BLOCK, 1)]
        num_rows = logits.kept_ids_PK.shape[1] + len(_WEIGHTS)
        num_floats = _NUM_FLOATS if values_PJ.device.type == "cpu" else _NUM_FLOATS_ON_GPU
        size = max(16, num_floats // (num_rows * values_PJ.shape[1]))
        parts = []
        for start in range(0, max(1, len(values_PJ)), size):
            check()
            few = slice(start, start + size)
            part = IdTargets(*(tensor[few] for tensor in logits))
            parts.append(self._search(values_PJ[few], part, prices))
        return torch.cat(parts)[:, :num_components]

    def _search(self, values_nJ: Tensor, logits: IdTargets, prices: list[Tensor]) -> Tensor:
        """``coefficients`` of as many positions as memory allows at once; ``prices`` are those of
        the components of each block, [L, b, X]."""
        masses_nNK, tail_n1 = _distributions(logits)
        weights_nK = torch.einsum("j,njk->nk", self._weights_N, masses_nNK)
        weights_nR = torch.cat([weights_nK, -self._weights_N.expand(len(weights_nK), -1)], 1)
        tail_n1 = tail_n1.clamp_min(_LEAST_TAIL)
        dampings = [tail_n1 * weight_b for weight_b in self._tail_weights]
        ids_nK = logits.kept_ids_PK.long().clamp_max(self._rows_BVb.shape[1] - 1)  # −inf, perhaps
        values = torch.split(values_nJ, _BLOCK, 1)
        numbers = [value_nb.round().clamp_(-MAX_VALUE, MAX_VALUE) for value_nb in values]
        rows, hessians = [], []
        error_nR = torch.zeros_like(weights_nR)  # of each row's logit
        for rows_Vb, damping_nb, value_nb, number_nb in zip(
            self._rows_BVb, dampings, values, numbers, strict=True
        ):
            rows_nKb = rows_Vb[ids_nK].float()
            rows_nRb = torch.cat([rows_nKb, torch.bmm(masses_nNK, rows_nKb)], 1)
            hessian_nbb = torch.bmm((rows_nRb * weights_nR[:, :, None]).transpose(1, 2), rows_nRb)
            hessian_nbb.diagonal(dim1=1, dim2=2).add_(damping_nb)
            error_nR += torch.bmm(rows_nRb, (number_nb - value_nb)[:, :, None])[:, :, 0]
            rows.append(rows_nRb)
            hessians.append(hessian_nbb)
        for _ in range(_SWEEPS):
            class_n = _cheapest(numbers, prices)
            for block, (rows_nRb, hessian_nbb) in enumerate(zip(rows, hessians, strict=True)):
                before_nb = numbers[block]
                slope_nb = torch.bmm((weights_nR * error_nR)[:, None], rows_nRb)[:, 0]
                slope_nb += dampings[block] * (before_nb - values[block])
                (after_nb,) = self._descend(
                    before_nb, slope_nb, hessian_nbb, prices[block], class_n
                )
                error_nR += torch.bmm(rows_nRb, (after_nb - before_nb)[:, :, None])[:, :, 0]
                numbers[block] = after_nb
        return torch.cat(numbers, 1)


def _distributions(logits: IdTargets) -> tuple[Tensor, Tensor]:
    """Probabilities of the kept ids at each of N temperatures, [n, N, K], and the tail's weight,
    [n, 1]."""
    masses, tail_n1 = [], torch.zeros_like(logits.logit_gaps_PK[:, :1])
    for column, (s, weight) in enumerate(zip(_INVERSE_TEMPERATURES, _WEIGHTS, strict=True)):
        scaled_nK = -s * logits.logit_gaps_PK
        tail_log_mass_n1 = logits.tail_log_mass_PN[:, column : column + 1]
        log_z_n1 = torch.logaddexp(torch.logsumexp(scaled_nK, 1, keepdim=True), tail_log_mass_n1)
        # Of a state that is not finite, nothing is; a NaN would become an index.
        masses.append((scaled_nK - log_z_n1).exp().nan_to_num(0.0))
        tail_n1 = tail_n1 + weight * (tail_log_mass_n1 - log_z_n1).exp().nan_to_num(0.0)
    return torch.stack(masses, 1), tail_n1


def _cheapest(numbers: list[Tensor], prices: list[Tensor]) -> Tensor:
    """The class in which the numbers of all blocks, [n, b] each, take the fewest bits, [n]."""
    price_nL = torch.zeros(len(numbers[0]), len(prices[0]), device=numbers[0].device)
    for number_nb, price_LbX in zip(numbers, prices, strict=True):
        index_bn = _index(number_nb, price_LbX).T
        index_Lbn = index_bn.expand(len(price_LbX), -1, -1)
        price_nL += price_LbX.gather(2, index_Lbn).sum(1).T
    return price_nL.argmin(1)


def _index(numbers: Tensor, price_LbX: Tensor) -> Tensor:
    """Where the prices of these numbers are among the X."""
    largest = price_LbX.shape[2] // 2
    return numbers.clamp(-largest, largest).long() + largest


def _descend(
    numbers_nb: Tensor,
    slope_nb: Tensor,
    hessian_nbb: Tensor,
    price_LbX: Tensor,
    class_n: Tensor,
) -> tuple[Tensor]:
    """One pass of coordinate descent over the components of a block; the numbers after it.

    ``slope_nb`` is the gradient of the loss, ``price_LbX`` what a value costs in a class, both in
    units of the step's square.
    """
    hessian_bbn = hessian_nbb.permute(1, 2, 0)
    slopes = list(slope_nb.unbind(1))
    after = []
    for component, now_n in enumerate(numbers_nb.unbind(1)):
        slope_n = slopes[component]
        curvature_n = hessian_bbn[component, component].clamp_min(1e-6)
        below_n = (now_n - slope_n / curvature_n).clamp(-MAX_VALUE, MAX_VALUE - 1).floor()
        best_n, least_n = now_n, None
        for candidate_n in (now_n, below_n, below_n + 1, torch.zeros_like(now_n)):
            move_n = candidate_n - now_n
            price_n = price_LbX[class_n, component, _index(candidate_n, price_LbX)]
            cost_n = move_n * (slope_n + 0.5 * curvature_n * move_n) + price_n
            if least_n is None:
                least_n = cost_n
            else:
                best_n = torch.where(cost_n < least_n, candidate_n, best_n)
                least_n = torch.minimum(cost_n, least_n)
        after.append(best_n)
        move_n = best_n - now_n
        for other in range(component + 1, len(slopes)):
            slopes[other] = slopes[other] + move_n * hessian_bbn[component, other]
    return (torch.stack(after, 1),)
