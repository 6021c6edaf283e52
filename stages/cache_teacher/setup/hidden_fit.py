"""Fit the transform of ``hidden`` targets to a teacher, and find the step that its KL allows.

In: the teacher, and the rows of a cache's first unit. Out: a ``HiddenTransform``, and what the spec
says of it. With W the head, a small error e of a hidden state changes the softmax at temperature T
by a KL of ½ eᵀF_T e, F_T = (Wᵀ diag(p) W − Wᵀp pᵀW) / T². F is the mean over positions and over
T ∈ {1, 2}. With F = Q Λ Qᵀ and L = Q √Λ, and U the eigenvectors of Lᵀ Cov(h) L, the coefficients
z = UᵀLᵀ(h − μ) are uncorrelated, and an error in any of them costs half its square: so all are
rounded to one step, the optimum for a mean of squares (reverse water-filling; Cover and Thomas,
section 10.3.3).

Shapes: N positions, D width, J components, V vocabulary.
"""

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from cache_format.coding.coefficients import MAX_VALUE, fit_code
from cache_format.metadata.spec_parts.targets import KL_TEMPERATURES, CodedStates
from cache_format.tables.hidden_transform import HiddenTransform
from stages.cache_teacher.corpus.packing import PackedUnit
from stages.cache_teacher.setup.unit_states import (
    scored_states,
    spread_indices,
    with_fixed_signs,
)
from stages.cache_teacher.targets.teacher_head import Head
from stages.cache_teacher.teacher.teacher import Teacher

_METRIC_POSITIONS = 1024
"""Whose distributions the metric is of, each of them V × D operations."""
_KL_POSITIONS = 512
"""That the KL is measured at."""
_METRIC_TEMPERATURES = (1.0, 2.0)
_CHUNK = 64
_MAX_TRIES = 12
_CLOSE_ENOUGH = 0.02
"""Of the KL that is asked for."""
_LEAST_METRIC = 1e-7
"""Of the largest eigenvalue of F. Less is what float32 makes of 0: of what no logit depends on, or
all alike."""


@torch.inference_mode()
def fit_transform(
    teacher: Teacher, packed: PackedUnit, max_kl: float, rows_per_forward: int
) -> tuple[CodedStates, HiddenTransform]:
    """The transform whose decoded states have a KL of ``max_kl`` nats to the teacher at T = 1.

    Raises ValueError where positions are fewer than components, or states are not finite.
    """
    states_ND = scored_states(teacher, packed, rows_per_forward)
    num_positions, width = states_ND.shape
    if num_positions < width:
        raise ValueError(
            f"targets: the transform of hidden states needs at least {width} positions, as many as "
            f"the teacher is wide, but the first unit has {num_positions}. Raise "
            "documents_per_unit."
        )
    if not bool(torch.isfinite(states_ND).all()):
        raise ValueError(
            "targets: the teacher's hidden states are not finite. Try another teacher_dtype "
            "(float32, bfloat16)."
        )
    mean_D = states_ND.double().mean(0)
    analysis_DD, synthesis_DD = _rotation(states_ND, mean_D, teacher.head)
    coordinates_ND = (states_ND - mean_D.float()) @ analysis_DD.T
    sample_N = spread_indices(num_positions, _KL_POSITIONS).to(states_ND.device)
    losses = _Losses(
        teacher.head, states_ND[sample_N], coordinates_ND[sample_N], mean_D.float(), synthesis_DD
    )
    step = _find_step(losses, max_kl, width)
    coefficients_ND = _rounded(coordinates_ND, step)
    is_used_D = (coefficients_ND != 0).any(0)
    num_components = int(is_used_D.nonzero().max()) + 1 if bool(is_used_D.any()) else 1
    code = fit_code(coefficients_ND[:, :num_components].to(torch.int16).cpu().numpy())
    transform = HiddenTransform(
        mean=mean_D.float().cpu().numpy(),
        analysis=(analysis_DD[:num_components] / step).cpu().numpy(),
        synthesis=(synthesis_DD[:num_components] * step).cpu().numpy(),
        code=code,
    )
    hidden = CodedStates(
        max_kl=max_kl,
        step=step,
        num_components=num_components,
        num_symbols=len(code.frequencies),
        self_kl=tuple(round(losses.kl(step, temperature), 6) for temperature in KL_TEMPERATURES),
        transform_sha256=transform.sha256,
    )
    return hidden, transform


def _rotation(states_ND: Tensor, mean_D: Tensor, head: Head) -> tuple[Tensor, Tensor]:
    """UᵀLᵀ and UᵀL⁻¹, float32 [D, D] each, in order of falling variance of the coordinates."""
    chosen = spread_indices(len(states_ND), _METRIC_POSITIONS).to(states_ND.device)
    values_D, axes_DD = torch.linalg.eigh(_metric(states_ND[chosen], head).cpu())
    scales_D = values_D.clamp_min(_LEAST_METRIC * values_D[-1]).sqrt()
    root_DD = axes_DD * scales_D
    moment_DD = torch.zeros_like(root_DD)
    for part_ND in torch.split(states_ND, 4096):
        centered_ND = part_ND.double() - mean_D
        moment_DD += (centered_ND.T @ centered_ND).cpu()
    covariance_DD = moment_DD / len(states_ND)
    vectors_DD = torch.linalg.eigh(root_DD.T @ covariance_DD @ root_DD).eigenvectors.flip(1)
    vectors_DD = with_fixed_signs(vectors_DD)
    analysis_DD = vectors_DD.T @ root_DD.T
    synthesis_DD = vectors_DD.T @ (axes_DD / scales_D).T
    device = states_ND.device
    return analysis_DD.float().to(device), synthesis_DD.float().contiguous().to(device)


def _metric(states_ND: Tensor, head: Head) -> Tensor:
    """The mean of F_T over positions and temperatures, float64 [D, D]."""
    head_VD = head.weight_VD.float()
    mean_p_V = head_VD.new_zeros(len(head_VD), dtype=torch.float64)
    outer_DD = torch.zeros(head_VD.shape[1], head_VD.shape[1], dtype=torch.float64)
    outer_DD = outer_DD.to(head_VD.device)
    for part_nD in torch.split(states_ND, _CHUNK):
        logits_nV = head.logits(part_nD)
        for temperature in _METRIC_TEMPERATURES:
            p_nV = torch.softmax(logits_nV / temperature, 1)
            mean_p_V += p_nV.sum(0) / temperature**2
            mean_nD = p_nV @ head_VD
            outer_DD += (mean_nD.T @ mean_nD).double() / temperature**2
    second_DD = torch.zeros_like(outer_DD)
    for head_vD, p_v in zip(torch.split(head_VD, 8192), torch.split(mean_p_V, 8192), strict=True):
        second_DD += (head_vD.T @ (head_vD * p_v[:, None].float())).double()
    return (second_DD - outer_DD) / (len(states_ND) * len(_METRIC_TEMPERATURES))


class _Losses:
    """What rounding loses, at some positions."""

    def __init__(
        self,
        head: Head,
        states_ND: Tensor,
        coordinates_ND: Tensor,
        mean_D: Tensor,
        synthesis_DD: Tensor,
    ) -> None:
        self._head, self._states_ND, self._coordinates_ND = head, states_ND, coordinates_ND
        self._mean_D, self._synthesis_DD = mean_D, synthesis_DD

    def kl(self, step: float, temperature: float = 1.0) -> float:
        """KL(teacher ‖ decoded), nats, a mean over positions."""
        rounded_ND = _rounded(self._coordinates_ND, step) * step
        decoded_ND = rounded_ND @ self._synthesis_DD + self._mean_D
        return math.fsum(self._sums(decoded_ND, temperature)) / len(decoded_ND)

    def _sums(self, decoded_ND: Tensor, temperature: float) -> Iterator[float]:
        for states_nD, decoded_nD in zip(
            torch.split(self._states_ND, _CHUNK), torch.split(decoded_ND, _CHUNK), strict=True
        ):
            log_p_nV = torch.log_softmax(self._head.logits(states_nD).double() / temperature, 1)
            log_q_nV = torch.log_softmax(self._head.logits(decoded_nD).double() / temperature, 1)
            yield float((log_p_nV.exp() * (log_p_nV - log_q_nV)).sum())


def _find_step(losses: _Losses, max_kl: float, width: int) -> float:
    """The step whose KL is ``max_kl`` within 2 %, the KL being about a power of the step."""
    step = math.sqrt(24 * max_kl / width)  # if no coefficient were 0
    found: list[tuple[float, float]] = []
    for _ in range(_MAX_TRIES):
        kl = losses.kl(step)
        if abs(kl / max_kl - 1) <= _CLOSE_ENOUGH:
            return step
        found.append((math.log(step), math.log(max(kl, 1e-12) / max_kl)))
        slope = 2.0
        if len(found) > 1:
            (x0, y0), (x1, y1) = found[-2:]
            slope = min(4.0, max(0.5, (y1 - y0) / (x1 - x0))) if x1 != x0 else 2.0
        step = math.exp(found[-1][0] - found[-1][1] / slope)
    best, _ = min(found, key=lambda pair: abs(pair[1]))  # of so small a sample
    return math.exp(best)


def _rounded(coordinates_ND: Tensor, step: float) -> Tensor:
    """Coefficients, whole numbers as float32."""
    return (coordinates_ND / step).round_().clamp_(-MAX_VALUE, MAX_VALUE)
