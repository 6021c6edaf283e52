"""The pass over all logits of a chunk: log-sum-exps, then the gradient for each logit.

In: the student's logits z, with −inf in the place of the target tokens (``target_tokens``), and the
log-masses of those. Out: log Σ exp(z) and log Σ exp(z/T) over the other ids, and the gradient by
their logits. With log Z_1 = log Σ exp(z) and log Z_tail = log Σ exp(z/T) over the ids that the
teacher did not keep, the gradient (see ``sparse_kl``) is

    c_ce·exp(z − log Z_1) + c_kl/T·tail_excess·exp(z/T − log Z_tail),
    tail_excess = q_tail − p_tail + Σw.

Where a chunk has a sample of the head's columns (``sampled_softmax``), a column stands for a number
of ids, and exp(z) and exp(z/T) are multiplied by that number throughout.

No mass is the difference of two others: the masses of target tokens and of the other ids are added
up, so a tail of 1e-12 keeps its digits. Compiled, a row is read three times while it lies in a
core's cache: for its maximum, its sums, its gradient. Not compiled, the same formulas read it a
dozen times. The moments of the student's tail (``tail_moment``) are a product of what the pass
writes for a few rows with a table, before the next rows overwrite it.

n positions of a chunk, V vocabulary or the columns that stand for it; log-masses are [n, 1].
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from stages.compute.compiling import Compiled, Mode
from stages.compute.matmul import product

_CACHED_BYTES = 5 << 18  # what is worked on at a time, with room beside it in a core's own cache
_SHARED_CACHE_BYTES = 10 << 20
_FEWEST_ROWS = 2  # a single one is not compiled
_LOWEST = -1e30
_PARTS = 8  # where a GPU has no compiler: temporaries take no more than half a chunk


class VocabularyWeights(NamedTuple):
    """c_ce·CE + c_kl·KL_T: what the sums over positions are multiplied by, and T."""

    cross_entropy: float
    """c_ce"""
    kl: float
    """c_kl; holds the T² of Hinton et al. (arXiv 1503.02531), if it is wanted."""
    temperature: float
    """T of the KL. Cross-entropy is at T = 1."""


class DeviceWeights(NamedTuple):
    """``VocabularyWeights`` as the gradient needs them: scalars on the device."""

    cross_entropy: Tensor
    """c_ce"""
    kl: Tensor
    """c_kl/T"""
    inverse_temperature: Tensor
    """1/T"""

    @classmethod
    def of(cls, weights: VocabularyWeights, device: torch.device) -> "DeviceWeights":
        """``weights``, filled in on the device: a copy would make the host wait for a GPU."""
        T = weights.temperature
        values = (weights.cross_entropy, weights.kl / T, 1 / T)
        return cls(*(torch.full((), value, device=device) for value in values))

    def times(self, scale: Tensor) -> "DeviceWeights":
        """Weights of a gradient ``scale`` times as large."""
        return DeviceWeights(self.cross_entropy * scale, self.kl * scale, self.inverse_temperature)


class TargetLogMasses(NamedTuple):
    """Log-masses of the target tokens, float32 [n, 1], to which those of the other ids are added.

    All but the first are absent where there is no KL.
    """

    log_mass: Tensor
    """log Σ exp(z) of all target tokens."""
    log_mass_at_T: Tensor | None = None
    """log Σ exp(z/T) of all target tokens."""
    tail_log_mass_at_T: Tensor | None = None
    """log Σ exp(z/T) of those that the teacher did not keep."""
    tail_target: Tensor | None = None
    """p_tail − Σw."""


class VocabularyPass:
    """The pass over the logits, compiled once for all chunks of a run."""

    def __init__(self, mode: Mode, device: torch.device) -> None:
        names = {"what": "the student's loss is computed", "setting": "train_student.compile"}
        self._labels = Compiled(_labels, mode, device, **names)
        self._targets = Compiled(_targets, mode, device, **names)
        self._weighted_labels = Compiled(_weighted_labels, mode, device, **names)
        self._weighted_targets = Compiled(_weighted_targets, mode, device, **names)
        self._shares = Compiled(_targets_and_shares, mode, device, **names)
        self._weighted_shares = Compiled(_weighted_targets_and_shares, mode, device, **names)

    def __call__(
        self,
        logits_nV: Tensor,
        target_masses: TargetLogMasses,
        weights: DeviceWeights,
        out_nV: Tensor | None,
        log_weight_V: Tensor | None = None,
        table_Vd: Tensor | None = None,
    ) -> list[Tensor]:
        """log Σ exp(z) of the other ids [n, 1], then, where there is a KL, that of z/T.

        The gradient is written to ``out_nV`` in its precision; without one, over the logits.
        ``log_weight_V``: log of how many ids each column stands for; without it, one each.
        With ``table_Vd``, where there is a KL, two more follow: with r = exp(z/T − log Z_tail) of
        the other ids, Σ r log r [n, 1] and Σ r·table [n, d], of r in the table's precision.
        """
        columns = [column for column in target_masses if column is not None]
        has_kl = len(columns) > 1
        scalars: tuple[Tensor, ...] = weights if has_kl else (weights.cross_entropy,)
        if log_weight_V is not None:
            scalars = (log_weight_V, *scalars)
        function = self._function(has_kl, table_Vd is not None, log_weight_V is not None)
        inputs, outputs = (logits_nV, *columns), () if out_nV is None else (out_nV,)
        if table_Vd is None:
            return _in_parts(function, scalars, (*inputs, *outputs))
        shares_nV = logits_nV.new_empty(_shape_of_shares(logits_nV), dtype=table_Vd.dtype)
        found = []
        for rows in _split((*inputs, *outputs), len(shares_nV)):
            own_nV = shares_nV[: len(rows[0])]
            sums = _in_parts(
                function, scalars, (*rows[: len(inputs)], own_nV, *rows[len(inputs) :])
            )
            found.append([*sums, product(own_nV, table_Vd)])
        return _joined(found)

    def _function(self, has_kl: bool, has_shares: bool, is_weighted: bool) -> Compiled:
        if not has_kl:
            assert not has_shares
            return self._weighted_labels if is_weighted else self._labels
        if has_shares:
            return self._weighted_shares if is_weighted else self._shares
        return self._weighted_targets if is_weighted else self._targets


def rows_at_a_time(logits_nV: Tensor, is_compiled: bool, num_logits: int = 1) -> int:
    """How many rows a pass takes at once, where it reads so many float32 logits of each id."""
    num_rows, num_ids = logits_nV.shape
    if logits_nV.device.type == "cpu":
        return max(_FEWEST_ROWS, _CACHED_BYTES // (4 * num_logits * num_ids))
    return num_rows if is_compiled else -(-num_rows // _PARTS)


def _shape_of_shares(logits_nV: Tensor) -> tuple[int, int]:
    """Of the rows whose shares exist at once: on a CPU, what stays in the cache that cores share
    until it is multiplied."""
    num_rows, num_ids = logits_nV.shape
    if logits_nV.device.type == "cpu":
        num_rows = min(num_rows, max(_FEWEST_ROWS, _SHARED_CACHE_BYTES // (4 * num_ids)))
    return num_rows, num_ids


def _in_parts(
    function: Compiled, scalars: Sequence[Tensor], tensors: Sequence[Tensor]
) -> list[Tensor]:
    """What ``function`` returns, so many rows at a time as one call takes."""
    size = rows_at_a_time(tensors[0], function.is_compiled)
    return _joined(
        [function(logits, *scalars, *others) for logits, *others in _split(tensors, size)]
    )


def _split(tensors: Sequence[Tensor], size: int) -> Iterator[tuple[Tensor, ...]]:
    return zip(*(torch.split(tensor, size) for tensor in tensors), strict=True)


def _joined(found: Sequence[Sequence[Tensor]]) -> list[Tensor]:
    return [torch.cat(columns) for columns in zip(*found, strict=True)]


def _labels(
    logits_nV: Tensor,
    ce_weight: Tensor,
    log_mass_n1: Tensor,
    out_nV: Tensor | None = None,
    *,
    log_weight_V: Tensor | None = None,
) -> tuple[Tensor, ...]:
    weighted_nV = _weighted(logits_nV, log_weight_V)
    max_n1 = _largest(weighted_nV)
    rest_n1 = max_n1 + (weighted_nV - max_n1).exp().sum(1, keepdim=True).log()
    log_z_n1 = torch.logaddexp(log_mass_n1, rest_n1)
    (logits_nV if out_nV is None else out_nV).copy_((weighted_nV - log_z_n1).exp() * ce_weight)
    return (rest_n1,)


def _targets(
    logits_nV: Tensor,
    ce_weight: Tensor,
    kl_weight: Tensor,
    inverse_temperature: Tensor,
    log_mass_n1: Tensor,
    log_mass_at_T_n1: Tensor,
    tail_log_mass_at_T_n1: Tensor,
    tail_target_n1: Tensor,
    out_nV: Tensor | None = None,
    *,
    log_weight_V: Tensor | None = None,
    shares_nV: Tensor | None = None,
) -> tuple[Tensor, ...]:
    max_n1 = _largest(_weighted(logits_nV, log_weight_V))
    below_nV = logits_nV - max_n1
    rest_n1 = max_n1 + _weighted(below_nV, log_weight_V).exp().sum(1, keepdim=True).log()
    rest_at_T_n1 = (
        max_n1 * inverse_temperature
        + _weighted(below_nV * inverse_temperature, log_weight_V).exp().sum(1, keepdim=True).log()
    )
    log_z_n1 = torch.logaddexp(log_mass_n1, rest_n1)
    log_z_at_T_n1 = torch.logaddexp(log_mass_at_T_n1, rest_at_T_n1)
    log_tail_n1 = torch.logaddexp(tail_log_mass_at_T_n1, rest_at_T_n1)
    tail_excess_n1 = (log_tail_n1 - log_z_at_T_n1).exp() - tail_target_n1
    # Where all ids are kept, all that is left is −inf, and −inf less −inf would be NaN.
    log_tail_n1 = log_tail_n1.masked_fill(log_tail_n1 == -torch.inf, 0.0)
    by_ce_nV = _weighted(logits_nV - log_z_n1, log_weight_V).exp() * ce_weight
    log_r_nV = logits_nV * inverse_temperature - log_tail_n1
    r_nV = _weighted(log_r_nV, log_weight_V).exp()
    found: tuple[Tensor, ...] = (rest_n1, rest_at_T_n1)
    if shares_nV is not None:
        shares_nV.copy_(r_nV)
        # 0 times −inf would be NaN.
        found = (*found, (r_nV * log_r_nV.clamp_min(_LOWEST)).sum(1, keepdim=True))
    by_kl_nV = r_nV * (tail_excess_n1 * kl_weight)
    (logits_nV if out_nV is None else out_nV).copy_(by_ce_nV + by_kl_nV)
    return found


def _targets_and_shares(
    logits_nV: Tensor,
    ce_weight: Tensor,
    kl_weight: Tensor,
    inverse_temperature: Tensor,
    log_mass_n1: Tensor,
    log_mass_at_T_n1: Tensor,
    tail_log_mass_at_T_n1: Tensor,
    tail_target_n1: Tensor,
    shares_nV: Tensor,
    out_nV: Tensor | None = None,
    *,
    log_weight_V: Tensor | None = None,
) -> tuple[Tensor, ...]:
    return _targets(
        logits_nV,
        ce_weight,
        kl_weight,
        inverse_temperature,
        log_mass_n1,
        log_mass_at_T_n1,
        tail_log_mass_at_T_n1,
        tail_target_n1,
        out_nV,
        log_weight_V=log_weight_V,
        shares_nV=shares_nV,
    )


def _weighted_labels(
    logits_nV: Tensor, log_weight_V: Tensor, *others: Tensor
) -> tuple[Tensor, ...]:
    return _labels(logits_nV, *others, log_weight_V=log_weight_V)


def _weighted_targets(
    logits_nV: Tensor, log_weight_V: Tensor, *others: Tensor
) -> tuple[Tensor, ...]:
    return _targets(logits_nV, *others, log_weight_V=log_weight_V)


def _weighted_targets_and_shares(
    logits_nV: Tensor, log_weight_V: Tensor, *others: Tensor
) -> tuple[Tensor, ...]:
    return _targets_and_shares(logits_nV, *others, log_weight_V=log_weight_V)


def _weighted(exponents_nV: Tensor, log_weight_V: Tensor | None) -> Tensor:
    return exponents_nV if log_weight_V is None else exponents_nV + log_weight_V


def _largest(logits_nV: Tensor) -> Tensor:
    """The largest logit of each row, or the lowest finite number where nothing is left."""
    return logits_nV.amax(1, keepdim=True).clamp_min(torch.finfo(logits_nV.dtype).min)
