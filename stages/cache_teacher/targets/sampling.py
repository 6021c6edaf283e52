"""Ids drawn at random from a teacher's distribution, and the numbers that decide which.

In: logits [C, V] with their blocks, uniform numbers [C, M]. Out: M ids for each position, drawn
with replacement from softmax(z/τ) over all ids, or over those not kept.
First the block is drawn, then the id within it: both by inversion, so a draw is a function of its
uniform number and the logits alone, and only M blocks are read again.

The numbers come from a counter (Philox, Salmon et al. 2011) keyed by the cache's seed and the unit,
one stream for each row: the same on every machine, whatever was computed before.

C positions, V ids with padding, G blocks, M draws, I ids of a block.
"""

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from stages.cache_teacher.targets.logit_blocks import (
    BLOCK,
    Blocks,
    gather_blocks,
    ids_of_blocks,
    order_keys,
)

_BITS_OF_A_FRACTION = 53


def uniform_numbers(
    seed: int, unit: int, row: int, num_positions: int, num_draws: int
) -> npt.NDArray[np.float64]:
    """Numbers in [0, 1) for one row, [positions, draws]."""
    key = np.array([seed, unit], np.uint64)
    counter = np.array([0, 0, 0, row], np.uint64)
    bits = np.random.Philox(key=key, counter=counter).random_raw(num_positions * num_draws)
    fraction = (bits >> np.uint64(64 - _BITS_OF_A_FRACTION)).astype(np.float64)
    numbers: npt.NDArray[np.float64] = fraction * 2.0**-_BITS_OF_A_FRACTION
    return numbers.reshape(num_positions, num_draws)


def draw(
    logits_CV: Tensor,
    blocks: Blocks,
    last_kept_C: Tensor | None,
    uniform_CM: Tensor,
    at_s: tuple[int, float],
) -> Tensor:
    """Ids, int64 [C, M], drawn with probability ∝ exp(z·s) for ``at_s`` = (index, s).

    ``last_kept_C`` are the keys (``order_keys``) of the last kept ids: those from them on are not
    drawn, and are not part of ``blocks``. Where nothing is left, what is returned means nothing.
    """
    index, s = at_s
    mass_CG = blocks.sums_CGN[:, :, index] * (blocks.max_CG - blocks.largest_C1()).mul(s).exp()
    block_CM, within_CM = _invert(mass_CG.double(), uniform_CM)
    logits_CMI, ids_CMI = gather_blocks(logits_CV, block_CM), ids_of_blocks(block_CM)
    if last_kept_C is not None:
        is_kept_CMI = order_keys(logits_CMI, ids_CMI) >= last_kept_C[:, None, None]
        logits_CMI = logits_CMI.masked_fill(is_kept_CMI, -torch.inf)
    largest_CM1 = blocks.max_CG.gather(1, block_CM)[:, :, None]
    mass_CMI = logits_CMI.sub(largest_CM1).mul(s).exp().double()
    place_CM, _ = _invert(mass_CMI.flatten(0, 1), within_CM.flatten()[:, None])
    return block_CM * BLOCK + place_CM.view_as(block_CM)


def _invert(mass_CX: Tensor, uniform_CM: Tensor) -> tuple[Tensor, Tensor]:
    """The index at which the cumulative mass passes each number, and how far into it, in [0, 1).

    No index without mass is ever chosen, unless none has any.
    """
    cumulative_CX = mass_CX.cumsum(1)
    # Below the total even after rounding, so that the last index with mass is the last one chosen.
    total_C1 = cumulative_CX[:, -1:]
    wanted_CM = torch.minimum(uniform_CM * total_C1, total_C1 * (1 - 2.0**-_BITS_OF_A_FRACTION))
    index_CM = torch.searchsorted(cumulative_CX, wanted_CM, right=True)
    index_CM = index_CM.clamp_max(mass_CX.shape[1] - 1)
    mass_CM = mass_CX.gather(1, index_CM)
    before_CM = cumulative_CX.gather(1, index_CM) - mass_CM
    within_CM = (wanted_CM - before_CM) / mass_CM
    return index_CM, within_CM.clamp(0.0, 1 - 2.0**-_BITS_OF_A_FRACTION)
