"""Fit the transform of ``hidden`` targets to a teacher, and find the step that its KL allows.

In: the teacher, and the rows of a cache's first unit. Out: a ``HiddenTransform``, and what the spec
says of it. With W the head, a small error e of a hidden state changes the softmax at temperature T
by a KL of ½ eᵀF_T e, F_T = (Wᵀ diag(p) W − Wᵀp pᵀW) / T². F is the mean over positions and over
T ∈ {1, 2}. With F = Q Λ Qᵀ and L = Q √Λ, and U the eigenvectors of Lᵀ Cov(h) L, the coefficients
z = UᵀLᵀ(h − μ) are uncorrelated, and an error in any of them costs half its square: so all have one
step, the optimum for a mean of squares (reverse water-filling; Cover and Thomas, section 10.3.3).

Shapes: N positions, D width, J components, V vocabulary; M positions that are quantized; L classes
of positions, X values of a coefficient.
"""

import math
from collections.abc import Callable, Iterable, Iterator
from functools import cached_property

import torch
from torch import Tensor

from cache_format.coding.coefficients import MAX_VALUE, CoefficientCode
from cache_format.coding.fitted_code import fit_code
from cache_format.metadata.spec_parts.targets import KL_TEMPERATURES, CodedStates, Quantization
from cache_format.tables.hidden_transform import HiddenTransform
from stages.cache_teacher.corpus.packing import PackedUnit
from stages.cache_teacher.setup.unit_states import (
    scored_states,
    spread_indices,
    with_fixed_signs,
)
from stages.cache_teacher.targets.coded.rate_distortion import METRIC_TEMPERATURES, RateDistortion
from stages.cache_teacher.targets.teacher_head import Head
from stages.cache_teacher.teacher.teacher import Teacher

_METRIC_POSITIONS = 1024
"""Whose distributions the metric is of, each of them V × D operations."""
_KL_POSITIONS = 512
"""That the KL is measured at."""
_SEARCH_POSITIONS = 1536
"""That rate-distortion optimization is tried at; the KL is measured at every third of them, which
the code that prices their bits is not fitted to: to those it would seem too good."""
_MAX_CLASSES = 4
"""Of positions, each with frequencies of its own. Eight take 0.5 % less and twice the memory."""
_ROUNDS = 2
"""Of coefficients and the code that prices them."""
_CHUNK = 64
_MAX_TRIES = 12
_CLOSE_ENOUGH = 0.02
"""Of the KL that is asked for."""
_LEAST_METRIC = 1e-7
"""Of the largest eigenvalue of F. Less is what float32 makes of 0: of what no logit depends on, or
all alike."""


def fit_transform(
    teacher: Teacher,
    packed: PackedUnit,
    max_kl: float,
    rows_per_forward: int,
    quantization: Quantization = "nearest",
) -> tuple[CodedStates, HiddenTransform]:
    """The transform whose decoded states have a KL of ``max_kl`` nats to the teacher at T = 1.

    Raises ValueError where positions are fewer than components, or states are not finite.
    """
    return HiddenFit(teacher, packed, rows_per_forward).transform(max_kl, quantization)


class HiddenFit:
    """A teacher's states in the coordinates of the transform, before these are quantized."""

    @torch.inference_mode()
    def __init__(self, teacher: Teacher, packed: PackedUnit, rows_per_forward: int) -> None:
        """Raises ValueError where positions are fewer than components, or states are not
        finite."""
        states_ND = scored_states(teacher, packed, rows_per_forward)
        num_positions, self._width = states_ND.shape
        if num_positions < self._width:
            raise ValueError(
                f"targets: the transform of hidden states needs at least {self._width} positions, "
                f"as many as the teacher is wide, but the first unit has {num_positions}. Raise "
                "documents_per_unit."
            )
        if not bool(torch.isfinite(states_ND).all()):
            raise ValueError(
                "targets: the teacher's hidden states are not finite. Try another teacher_dtype "
                "(float32, bfloat16)."
            )
        mean_D = states_ND.double().mean(0)
        self._head, self._states_ND, self._mean_D = teacher.head, states_ND, mean_D.float()
        self._analysis_DD, self._synthesis_DD = _rotation(states_ND, mean_D, teacher.head)

    @torch.inference_mode()
    def transform(
        self, max_kl: float, quantization: Quantization = "nearest"
    ) -> tuple[CodedStates, HiddenTransform]:
        """The transform of that KL, and what the spec says of it; see ``fit_transform``."""
        quantizer = self._searched if quantization == "rate_distortion" else self._nearest
        measured = quantizer.measured
        losses = _Losses(
            self._head, quantizer.states_MD[measured], self._mean_D, self._synthesis_DD
        )

        def kl(step: float) -> float:
            return losses.kl(quantizer.coefficients(step)[measured], step)

        step = _find_step(kl, max_kl, self._width)
        coefficients_MD = quantizer.coefficients(step)
        is_used_D = (coefficients_MD != 0).any(0)
        num_components = int(is_used_D.nonzero().max()) + 1 if bool(is_used_D.any()) else 1
        code = _code_of(coefficients_MD[:, :num_components])
        transform = HiddenTransform(
            mean=self._mean_D.cpu().numpy(),
            analysis=(self._analysis_DD[:num_components] / step).cpu().numpy(),
            synthesis=(self._synthesis_DD[:num_components] * step).cpu().numpy(),
            code=code,
        )
        hidden = CodedStates(
            max_kl=max_kl,
            step=step,
            quantization=quantization,
            num_components=num_components,
            num_symbols=code.num_symbols,
            num_classes=code.num_classes,
            num_raw_bits=code.num_raw_bits,
            self_kl=tuple(
                round(losses.kl(coefficients_MD[measured], step, temperature), 6)
                for temperature in KL_TEMPERATURES
            ),
            transform_sha256=transform.sha256,
        )
        return hidden, transform

    @cached_property
    def _nearest(self) -> "_Nearest":
        return _Nearest(self._states_ND, self._coordinates(self._states_ND))

    @cached_property
    def _searched(self) -> "_Searched":
        sample_M = spread_indices(len(self._states_ND), _SEARCH_POSITIONS).to(
            self._states_ND.device
        )
        states_MD = self._states_ND[sample_M]
        nearest = _Nearest(states_MD, self._coordinates(states_MD))
        return _Searched(nearest, self._head, self._synthesis_DD)

    def _coordinates(self, states_MD: Tensor) -> Tensor:
        return (states_MD - self._mean_D) @ self._analysis_DD.T


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
        for temperature in METRIC_TEMPERATURES:
            p_nV = torch.softmax(logits_nV / temperature, 1)
            mean_p_V += p_nV.sum(0) / temperature**2
            mean_nD = p_nV @ head_VD
            outer_DD += (mean_nD.T @ mean_nD).double() / temperature**2
    second_DD = torch.zeros_like(outer_DD)
    for head_vD, p_v in zip(torch.split(head_VD, 8192), torch.split(mean_p_V, 8192), strict=True):
        second_DD += (head_vD.T @ (head_vD * p_v[:, None].float())).double()
    return (second_DD - outer_DD) / (len(states_ND) * len(METRIC_TEMPERATURES))


class _Nearest:
    """Coordinates become the nearest coefficients."""

    def __init__(self, states_MD: Tensor, coordinates_MD: Tensor) -> None:
        self.states_MD, self.coordinates_MD = states_MD, coordinates_MD
        self.measured = spread_indices(len(states_MD), _KL_POSITIONS).to(states_MD.device)
        """Of the M positions those that the KL is measured at."""

    def coefficients(self, step: float) -> Tensor:
        """Whole numbers as float32, [M, D]."""
        return (self.coordinates_MD / step).round_().clamp_(-MAX_VALUE, MAX_VALUE)


class _Searched:
    """By what bits cost and what errors lose. The code that says the former is fitted to the
    coefficients before: those of nearest rounding at first."""

    def __init__(self, nearest: _Nearest, head: Head, synthesis_DD: Tensor) -> None:
        self.states_MD, self._nearest = nearest.states_MD, nearest
        self._search = RateDistortion(head, synthesis_DD, chunk=_CHUNK, compile="off")
        device = self.states_MD.device
        labels_M = torch.zeros(len(self.states_MD), dtype=torch.int64, device=device)
        self._logits = self._search.largest(self.states_MD, labels_M)
        is_measured_M = torch.arange(len(labels_M), device=device) % 3 == 1
        self.measured, self._coded = is_measured_M.nonzero()[:, 0], ~is_measured_M

    def coefficients(self, step: float) -> Tensor:
        """Whole numbers as float32, [M, D]."""
        found_MD, values_MD = self._nearest.coefficients(step), self._nearest.coordinates_MD / step
        for _ in range(_ROUNDS):
            prices_LDX = torch.from_numpy(_code_of(found_MD[self._coded]).prices()).to(
                values_MD.device
            )
            found_MD = self._search.coefficients(values_MD, self._logits, prices_LDX)
        return found_MD


def _code_of(coefficients_MJ: Tensor) -> CoefficientCode:
    return fit_code(coefficients_MJ.to(torch.int16).cpu().numpy(), _MAX_CLASSES)


class _Losses:
    """What quantization loses, at some positions."""

    def __init__(self, head: Head, states_ND: Tensor, mean_D: Tensor, synthesis_DD: Tensor) -> None:
        self._head, self._states_ND = head, states_ND
        self._mean_D, self._synthesis_DD = mean_D, synthesis_DD

    @cached_property
    def _at_one(self) -> list[Tensor]:
        """log p at T = 1, which every step that is tried is compared with; float32."""
        return [log_p_nV.float() for log_p_nV in self._log_probabilities(self._states_ND, 1.0)]

    def kl(self, coefficients_ND: Tensor, step: float, temperature: float = 1.0) -> float:
        """KL(teacher ‖ decoded), nats, a mean over positions."""
        decoded_ND = (coefficients_ND * step) @ self._synthesis_DD + self._mean_D
        exact: Iterable[Tensor] = self._at_one
        if temperature != 1.0:
            exact = self._log_probabilities(self._states_ND, temperature)
        sums = []
        for log_p_nV, log_q_nV in zip(
            exact, self._log_probabilities(decoded_ND, temperature), strict=True
        ):
            # Both in place: these are large.
            log_ratio_nV = log_q_nV.neg_().add_(log_p_nV)
            sums.append(float(log_ratio_nV.mul_(log_p_nV.exp()).sum()))
        return math.fsum(sums) / len(decoded_ND)

    def _log_probabilities(self, states_ND: Tensor, temperature: float) -> Iterator[Tensor]:
        for states_nD in torch.split(states_ND, _CHUNK):
            logits_nV = self._head.logits(states_nD).double()
            yield torch.log_softmax(logits_nV.div_(temperature), 1)


def _find_step(kl_of: Callable[[float], float], max_kl: float, width: int) -> float:
    """The step whose KL is ``max_kl`` within 2 %, the KL being about a power of the step."""
    step = math.sqrt(24 * max_kl / width)  # if no coefficient were 0
    found: list[tuple[float, float]] = []
    for _ in range(_MAX_TRIES):
        kl = kl_of(step)
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
