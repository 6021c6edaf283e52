"""Logits in blocks of ids: what a distribution is summed up by, in one reading of its logits.

In: logits [C, V], V a multiple of ``BLOCK``, −inf in the place of ids that do not exist. Out: each
block's largest logit and its mass at every inverse temperature; the k largest logits; log-masses.
Half a megabyte of logits a position is read once, whatever the number of
inverse temperatures; all else is done on what is left of them, and on the few blocks that matter.

Ids that are kept leave their blocks, whose masses are then taken anew from what remains: a tail of
1e-6 keeps its digits, which a difference of sums would lose.

C positions, V ids with padding, G blocks, B of them, I ids of a block, K kept, N inverse
temperatures s.
"""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

BLOCK = 64
"""Ids of a block: near √(V/K), where reading all maxima costs what reading K blocks does."""
POWERS = 8
"""s is a multiple of 1/8: one exp of z/8 for each logit, the rest are products."""

_LOW_BITS = 0xFFFF_FFFF


class Blocks(NamedTuple):
    """What the blocks of some positions hold."""

    max_CG: Tensor
    """The largest logit, or the lowest finite number where the block is empty."""
    sums_CGN: Tensor
    """Σ exp((z − max)·s) at every s; 0 where the block is empty."""

    def log_mass(self, inverse_temperatures: tuple[float, ...]) -> Tensor:
        """log Σ exp(z·s) over all blocks at every s: [C, N]; −inf where nothing is left."""
        scaled_CN = times_each(self.largest_C1(), inverse_temperatures)
        return scaled_CN + self.masses(inverse_temperatures).sum(1).log()

    def masses(self, inverse_temperatures: tuple[float, ...]) -> Tensor:
        """Σ exp((z − z_largest)·s) of each block at every s: [C, G, N]."""
        base_CG = self.max_CG.sub(self.largest_C1()).div(POWERS).exp()
        weights = [weight_CG.clone() for weight_CG in powers(base_CG, inverse_temperatures)]
        return self.sums_CGN * torch.stack(weights, 2)

    def at(self, index: int) -> "Blocks":
        """With the sums at one inverse temperature alone."""
        return Blocks(self.max_CG, self.sums_CGN[:, :, index : index + 1])

    def largest_C1(self) -> Tensor:
        """The largest logit of all blocks: however deep a tail, its own masses do not vanish."""
        return self.max_CG.amax(1, keepdim=True)


class Largest(NamedTuple):
    """The k largest logits, falling; the lowest id first on a tie, also for the last place."""

    values_CK: Tensor
    ids_CK: Tensor
    keys_CK: Tensor
    """See ``order_keys``: an id whose key is that of the n-th or more is among the first n."""
    blocks_CB: Tensor
    """The blocks in which they lie, and perhaps others."""
    keys_CBI: Tensor
    """The keys of all ids of those."""


def blocks_of(logits_CV: Tensor, inverse_temperatures: tuple[float, ...]) -> Blocks:
    """The blocks of whole positions. What is not finite stays so in a maximum or in the sums."""
    return _sum_up(_in_blocks(logits_CV), inverse_temperatures)


def largest(logits_CV: Tensor, blocks: Blocks, top_k: int) -> Largest:
    """The ``top_k`` largest logits, read from as many blocks.

    Exact, ties included: an id that is among the k largest, lower ids first, lies in one of the k
    blocks of largest maxima, lower blocks first. For each block before its own, by that order,
    holds an id that comes before it.
    """
    num_blocks = blocks.max_CG.shape[1]
    block_ids_G = torch.arange(num_blocks, device=logits_CV.device)
    block_keys_CG = order_keys(blocks.max_CG, block_ids_G)
    _, blocks_CB = _first(block_keys_CG, min(top_k, num_blocks))
    keys_CBI = order_keys(gather_blocks(logits_CV, blocks_CB), ids_of_blocks(blocks_CB))
    keys_CK, ids_CK = _first(keys_CBI.flatten(1), top_k)
    return Largest(logits_CV.gather(1, ids_CK), ids_CK, keys_CK, blocks_CB, keys_CBI)


def without(
    logits_CV: Tensor,
    blocks: Blocks,
    found: Largest,
    last_kept_C: Tensor,
    inverse_temperatures: tuple[float, ...],
) -> Blocks:
    """``blocks`` without the ids whose keys are ``last_kept_C`` or more, summed up anew."""
    index_CB = found.blocks_CB
    is_kept_CBI = found.keys_CBI >= last_kept_C[:, None, None]
    logits_CBI = gather_blocks(logits_CV, index_CB).masked_fill(is_kept_CBI, -torch.inf)
    rest = _sum_up(logits_CBI, inverse_temperatures)
    index_CBN = index_CB[:, :, None].expand_as(rest.sums_CGN)
    return Blocks(
        blocks.max_CG.scatter(1, index_CB, rest.max_CG),
        blocks.sums_CGN.scatter(1, index_CBN, rest.sums_CGN),
    )


def times_each(values_C1: Tensor, inverse_temperatures: tuple[float, ...]) -> Tensor:
    """Values times every s, [C, N]; a tensor made of them would make a GPU's host wait."""
    return torch.cat([values_C1 * s for s in inverse_temperatures], 1)


def order_keys(logits: Tensor, ids: Tensor) -> Tensor:
    """int64 that are larger the larger the logit, then the lower the id; no two are equal.

    The bits of a float32 are ordered as its value is, those of negative numbers the other way.
    """
    bits = (logits + 0.0).view(torch.int32)  # −0 is 0
    ordered = torch.where(bits < 0, bits ^ 0x7FFF_FFFF, bits).long()
    return (ordered << 32) | (_LOW_BITS - ids)


def gather_blocks(logits_CV: Tensor, blocks_CB: Tensor) -> Tensor:
    """The logits of some blocks of each position: [C, B, BLOCK]."""
    index_CBI = blocks_CB[:, :, None].expand(-1, -1, BLOCK)
    return _in_blocks(logits_CV).gather(1, index_CBI)


def ids_of_blocks(blocks_CB: Tensor) -> Tensor:
    """The ids in those blocks: [C, B, BLOCK]."""
    return blocks_CB[:, :, None] * BLOCK + torch.arange(BLOCK, device=blocks_CB.device)


def _in_blocks(logits_CV: Tensor) -> Tensor:
    """[C, G, I]"""
    num_positions, num_ids = logits_CV.shape
    return logits_CV.view(num_positions, num_ids // BLOCK, BLOCK)


def _first(keys_CX: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The ``count`` largest keys, falling, and their ids."""
    keys = torch.topk(keys_CX, count, dim=1).values
    return keys, _LOW_BITS - (keys & _LOW_BITS)


def _sum_up(logits_CGI: Tensor, inverse_temperatures: tuple[float, ...]) -> Blocks:
    max_CG = logits_CGI.amax(2).clamp_min(torch.finfo(logits_CGI.dtype).min)
    weight_CGI = logits_CGI.sub(max_CG[:, :, None]).div_(POWERS).exp_()
    sums = [power_CGI.sum(2) for power_CGI in powers(weight_CGI, inverse_temperatures)]
    return Blocks(max_CG, torch.stack(sums, 2))


def powers(base: Tensor, inverse_temperatures: tuple[float, ...]) -> Iterator[Tensor]:
    """``base`` to the power of 8s for every s, rising; each overwrites the one before it.

    New memory for each would cost a CPU more than the products.
    """
    power, exponent = base.clone(), 1
    for s in inverse_temperatures:
        while exponent < round(s * POWERS):
            power.mul_(base)
            exponent += 1
        yield power
