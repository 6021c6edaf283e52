"""Fit the basis of the tail's moments to a teacher, and the transform of what is stored in it.

In: the teacher, and the rows of a cache's first unit. Out: a ``MomentTransform``, and what the spec
says of it. At a position and a node, p is the tail's mass, m the mean of the head's rows under the
distribution within the tail, H its entropy. A student is off by p·(m − m′) in its gradient, so the
basis is the one that leaves out least of p·(m − m̄): its first principal components. The rotated
numbers of all nodes are rounded to one step, which is found from the eigenvalues: of a component of
variance λ, rounding to the step Δ loses min(λ, Δ²/12) (reverse water-filling; Cover and Thomas,
section 10.3.3). What is lost is to be little beside what the basis leaves out.

Shapes: N positions, n nodes, V vocabulary, D width, d basis, e = d + 1, U = n·e, J components.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from cache_format.coding.coefficients import MAX_VALUE
from cache_format.coding.fitted_code import fit_code
from cache_format.metadata.spec_parts.targets import TailMoment, TargetSpec
from cache_format.tables.linear_transform import LinearTransform
from cache_format.tables.tail_moment import MomentTransform
from stages.cache_teacher.corpus.packing import PackedUnit
from stages.cache_teacher.setup.unit_states import (
    scored_states,
    spread_indices,
    with_fixed_signs,
)
from stages.cache_teacher.targets import top_k
from stages.cache_teacher.targets.coded.tail_moment import TailSums, padded_table, tail_sums
from stages.cache_teacher.targets.teacher_head import Head
from stages.cache_teacher.teacher.teacher import Teacher

_POSITIONS = 4096
"""Whose tails are summed up: n times the head's operations for each."""
_CHUNK = 64
_SHARE_OF_RESIDUAL = 0.03
"""What rounding may lose, of what the basis leaves out: mean squares. With the demo's teacher and
16 directions, a gradient's error is about 1 % larger than with exact moments."""
_LEAST_SHARE = 1e-6
"""What it may lose in any case, of all: a basis of all directions leaves out nothing."""


class _Tails(NamedTuple):
    """What ``TailSums`` are over the head's own rows, at all chosen positions and nodes."""

    mass_Nn: Tensor
    moment_NnD: Tensor
    entropy_Nn: Tensor


@torch.inference_mode()
def fit_moment(
    teacher: Teacher, packed: PackedUnit, targets: TargetSpec, rows_per_forward: int
) -> tuple[TailMoment, MomentTransform]:
    """Basis and transform for moments in ``targets.tail_moment.dim`` directions.

    Raises ValueError where positions are fewer than directions, or states are not finite.
    """
    dim = targets.tail_moment.dim
    states_ND = scored_states(teacher, packed, rows_per_forward)
    if len(states_ND) < dim:
        raise ValueError(
            f"targets: a basis of {dim} directions needs at least {dim} positions, but the first "
            f"unit has {len(states_ND)}. Raise documents_per_unit, or lower tail_moment_dim."
        )
    if not bool(torch.isfinite(states_ND).all()):
        raise ValueError(
            "targets: the teacher's hidden states are not finite, so that its tails have no "
            "moments. Try another teacher_dtype (float32, bfloat16)."
        )
    chosen_N = spread_indices(len(states_ND), _POSITIONS).to(states_ND.device)
    tails = _tails_of(states_ND[chosen_N], teacher.head, targets)
    centers = _centers(tails)
    centered_NnD = tails.moment_NnD - tails.mass_Nn[:, :, None] * centers.moment_D
    values_D, basis_dD = _basis(centered_NnD, dim)
    moments_Nnd = centered_NnD @ basis_dD.T
    entropies_Nn = tails.entropy_Nn - tails.mass_Nn * centers.entropy
    vectors_NU = torch.cat((moments_Nnd, entropies_Nn[:, :, None]), 2).flatten(1)
    num_nodes = tails.mass_Nn.shape[1]
    # A mean over positions of what all nodes lose together.
    total = float(values_D.sum()) / len(vectors_NU)
    residual = max(0.0, float(values_D[dim:].sum())) / len(vectors_NU)
    allowed = max(_SHARE_OF_RESIDUAL * residual, _LEAST_SHARE * total)
    transform, step = _transform(vectors_NU, num_nodes, allowed)
    center_e = torch.cat((basis_dD @ centers.moment_D, centers.entropy[None]))
    moment = MomentTransform(
        basis=basis_dD.cpu().numpy(), center=center_e.cpu().numpy(), transform=transform
    )
    return (
        TailMoment(
            dim=dim,
            step=step,
            num_components=len(transform.analysis),
            num_symbols=transform.code.num_symbols,
            num_classes=transform.code.num_classes,
            num_raw_bits=transform.code.num_raw_bits,
            transform_sha256=moment.sha256,
        ),
        moment,
    )


def _tails_of(states_ND: Tensor, head: Head, targets: TargetSpec) -> _Tails:
    table_VD = padded_table(head.weight_VD.float())
    nodes = targets.inverse_temperatures
    sums: Callable[..., TailSums] = partial(tail_sums, inverse_temperatures=nodes)
    parts = []
    for part_CD in torch.split(states_ND, _CHUNK):
        logits_CV = head.padded_logits(part_CD)
        labels_C = torch.zeros(len(part_CD), dtype=torch.int64, device=logits_CV.device)
        kept = top_k.keep_largest(logits_CV, labels_C, targets)
        _, _, *fields = kept.fields()
        parts.append(sums(logits_CV, *fields, table_VD))
    mass, moment, entropy = (torch.cat(column) for column in zip(*parts, strict=True))
    return _Tails(mass, moment, entropy)


class _Centers(NamedTuple):
    """Means over positions and nodes, weighted by the square of the tail's mass."""

    moment_D: Tensor
    entropy: Tensor


def _centers(tails: _Tails) -> _Centers:
    mass_Nn = tails.mass_Nn.double()
    weight = mass_Nn.square().sum().clamp_min(torch.finfo(torch.float64).tiny)
    weighted_D = sum(
        part_n.double() @ moment_nD.double()
        for part_n, moment_nD in zip(tails.mass_Nn, tails.moment_NnD, strict=True)
    )
    assert isinstance(weighted_D, Tensor)
    entropy = (mass_Nn * tails.entropy_Nn.double()).sum() / weight
    return _Centers((weighted_D / weight).float(), entropy.float())


def _basis(centered_NnD: Tensor, dim: int) -> tuple[Tensor, Tensor]:
    """All eigenvalues of Σ x xᵀ over positions and nodes, falling, and the first ``dim`` vectors,
    float32 [d, D]."""
    width = centered_NnD.shape[2]
    second_DD = torch.zeros(width, width, dtype=torch.float64, device=centered_NnD.device)
    for part_XD in torch.split(centered_NnD.flatten(0, 1), 4096):
        second_DD += (part_XD.T @ part_XD).double()
    values_D, vectors_DD = torch.linalg.eigh(second_DD.cpu())
    basis_Dd = with_fixed_signs(vectors_DD.flip(1)[:, :dim]).float()
    return values_D.flip(0), basis_Dd.T.contiguous().to(centered_NnD.device)


def _transform(vectors_NU: Tensor, num_nodes: int, allowed: float) -> tuple[LinearTransform, float]:
    """The transform of u at all nodes, whose rounding loses a mean square of ``allowed``."""
    scale_U = _scale(vectors_NU, num_nodes)
    mean_U = vectors_NU.double().mean(0)
    centered_NU = (vectors_NU.double() - mean_U) * scale_U
    covariance_UU = (centered_NU.T @ centered_NU / len(vectors_NU)).cpu()
    values_U, vectors_UU = torch.linalg.eigh(covariance_UU)
    values_U, vectors_UU = values_U.flip(0).clamp_min(0.0), with_fixed_signs(vectors_UU.flip(1))
    lost = _water_level(values_U.tolist(), allowed)
    num_components = max(1, int((values_U > lost).sum()))
    step = max(math.sqrt(12 * lost), 1e-12)
    rotation_JU = vectors_UU.T[:num_components].to(vectors_NU.device)
    coefficients_NJ = (centered_NU @ rotation_JU.T / step).round().clamp(-MAX_VALUE, MAX_VALUE)
    transform = LinearTransform(
        mean=mean_U.float().cpu().numpy(),
        analysis=(rotation_JU * scale_U / step).float().cpu().numpy(),
        synthesis=(rotation_JU / scale_U * step).float().cpu().numpy(),
        code=fit_code(coefficients_NJ.to(torch.int16).cpu().numpy()),
    )
    return transform, step


def _scale(vectors_NU: Tensor, num_nodes: int) -> Tensor:
    """What the numbers are multiplied by before they are rotated, float64 [U]: entropies, which the
    value alone depends on, weigh as much as all moments."""
    squares_ne = vectors_NU.double().square().mean(0).view(num_nodes, -1)
    of_moments, of_entropies = squares_ne[:, :-1].sum(), squares_ne[:, -1].sum()
    scale_ne = torch.ones_like(squares_ne)
    if of_moments > 0 and of_entropies > 0:
        scale_ne[:, -1] = (of_moments / of_entropies).sqrt()
    return scale_ne.flatten()


def _water_level(variances: list[float], allowed: float) -> float:
    """The θ at which Σ min(λ, θ) is ``allowed``; the largest λ if the sum is never as large.

    ``variances`` fall.
    """
    above = 0.0
    for count, variance in reversed(list(enumerate(variances, start=1))):
        # With the smaller ones left out whole, the first ``count`` lose θ each.
        if above + count * variance >= allowed:
            return max(0.0, (allowed - above) / count)
        above += variance
    return variances[0]
