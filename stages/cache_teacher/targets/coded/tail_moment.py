"""The first moment of a position's tail and its entropy at every inverse temperature.

In: logits and the ids that are kept of them. With r the distribution within the tail, p the tail's
mass and t_j a row of numbers for each id,

    p·Σ r_j t_j   and   p·H,   H = −Σ r_j log r_j   (nats),

from one exponential of each logit, one product with the table of these rows at each s, and no
logits beyond those of a chunk. Out: these; or, with the table (head · basisᵀ − center) of a cache,
the coefficients that it stores.

C positions, V ids with padding, K kept, N inverse temperatures s, X numbers of a row of the table,
d directions of the basis, e = d + 1, J components.
"""

from functools import partial
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from cache_format.metadata.spec_parts.targets import TargetSpec
from cache_format.tables.shared_files import SharedFiles
from cache_format.tables.tail_moment import MomentTransform
from stages.cache_teacher.targets.coded.analysis import Analysis
from stages.cache_teacher.targets.logit_blocks import BLOCK, POWERS, powers
from stages.cache_teacher.targets.teacher_head import Head
from stages.compute.compiling import Compiled

_LOWEST = -1e30
"""A logit whose mass is 0, and of which 0 times it is not NaN."""


class TailSums(NamedTuple):
    """What is summed up over the tails of C positions; 0 where nothing is left out."""

    mass_CN: Tensor
    """p, the tail's share of all mass."""
    moment_CNX: Tensor
    """p·Σ r_j t_j"""
    entropy_CN: Tensor
    """p·H"""


def tail_sums(
    logits_CV: Tensor,
    num_kept_C: Tensor,
    ids_CK: Tensor,
    gaps_CK: Tensor,
    tail_log_mass_CN: Tensor,
    table_VX: Tensor,
    *,
    inverse_temperatures: tuple[float, ...],
) -> TailSums:
    """The sums over all ids but the first ``num_kept_C`` of each position."""
    ranks_K = torch.arange(ids_CK.shape[1], device=ids_CK.device)
    is_kept_CK = ranks_K < num_kept_C[:, None]
    kept_ids_CK = torch.where(is_kept_CK, ids_CK, ids_CK[:, :1]).long()
    rest_CV = logits_CV.scatter(1, kept_ids_CK, -torch.inf)
    below_CV = rest_CV.sub(rest_CV.amax(1, keepdim=True)).nan_to_num(_LOWEST, neginf=_LOWEST)
    base_CV = below_CV.div(POWERS).exp()
    gaps_CK = gaps_CK.masked_fill(~is_kept_CK, torch.inf)
    masses, moments, entropies = [], [], []
    for s, weight_CV, tail_C in zip(
        inverse_temperatures,
        powers(base_CV, inverse_temperatures),
        tail_log_mass_CN.unbind(1),
        strict=True,
    ):
        share_C1 = (tail_C - (gaps_CK * -s).logsumexp(1)).sigmoid()[:, None]
        sum_C1 = weight_CV.sum(1, keepdim=True)
        energy_C1 = (weight_CV * below_CV).sum(1, keepdim=True) / sum_C1
        masses.append(share_C1)
        moments.append((weight_CV @ table_VX) * (share_C1 / sum_C1))
        entropies.append(share_C1 * (sum_C1.log() - s * energy_C1))
    found = torch.cat(masses, 1), torch.stack(moments, 1), torch.cat(entropies, 1)
    return TailSums(*(numbers.nan_to_num(0.0) for numbers in found))


class MomentMaker:
    """Makes the coefficients of the moments of one cache's tails."""

    def __init__(
        self,
        head: Head,
        moment: MomentTransform,
        inverse_temperatures: tuple[float, ...],
        compile: Literal["auto", "on", "off"],
    ) -> None:
        """``compile`` as in the settings."""
        center_e = torch.from_numpy(moment.center).to(head.device)
        basis_Dd = torch.from_numpy(moment.basis).to(head.device).T
        self._table_Vd = padded_table(head.weight_VD.float() @ basis_Dd - center_e[:-1])
        self._entropy_center = center_e[-1:]
        self._analysis = Analysis(moment.transform, head.device)
        self._sums = Compiled(
            partial(tail_sums, inverse_temperatures=inverse_temperatures),
            compile,
            head.device,
            what="targets are made",
            setting="cache_teacher.compile",
        )

    def coefficients(self, logits_CV: Tensor, kept: tuple[Tensor, ...]) -> Tensor:
        """int16 [C, J]; ``kept`` are the arguments of ``tail_sums`` after the logits."""
        sums = TailSums(*self._sums(logits_CV, *kept, self._table_Vd))
        entropy_CN1 = (sums.entropy_CN - sums.mass_CN * self._entropy_center)[:, :, None]
        vectors_CNe = torch.cat((sums.moment_CNX, entropy_CN1), 2)
        values_CJ, _ = self._analysis(vectors_CNe.flatten(1))
        return values_CJ.round_().to(torch.int16)


def padded_table(table_VX: Tensor) -> Tensor:
    """With rows of 0 for what pads the ids to whole blocks."""
    return torch.nn.functional.pad(table_VX, (0, 0, 0, -len(table_VX) % BLOCK))


def moment_maker(
    head: Head, spec: TargetSpec, shared: SharedFiles, compile: Literal["auto", "on", "off"]
) -> MomentMaker | None:
    """What makes the moments that ``spec`` asks for; None if it asks for none."""
    if spec.moment is None:
        return None
    return MomentMaker(head, shared.moment_transform, spec.inverse_temperatures, compile)
