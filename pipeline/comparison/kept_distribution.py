"""The distribution that a cache's rows hold, as the loss takes it and over the whole vocabulary.

In: rows that passed through the codec. Out: the targets of the loss, and from them log q of every
id. The tail of ``top_k`` is spread evenly over the ids that are left out, with its moment or
without: a moment is no distribution, but part of a gradient.

Of draws, ids that were not drawn have a probability of 0 in the loss, and KL to it is infinite. So
one more draw is added to a position's, spread evenly over the ids that could be drawn, and their
weights in the loss are scaled to add up to 1. That is what one position tells by itself, no bias:
over many positions a loss of draws is unbiased, see ``gradient_errors.py``.

N positions, P scored positions of all rows, V vocabulary, D width, K kept ids, J drawn ids.
"""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from cache_format.codec.row import Row
from cache_format.metadata.spec import CacheSpec
from cache_format.metadata.spec_parts.targets import TargetSpec
from cache_format.tables.shared_files import SharedFiles
from stages.train_student.data.targets import kinds as stage_two_kinds
from stages.train_student.data.targets.dense_targets import DenseTargets
from stages.train_student.data.targets.ids import IdTargets, kept_targets, sparse_targets
from stages.train_student.data.targets.moment_tables import tables_of
from stages.train_student.data.targets.sparse_targets import SparseTargets

TargetsAt = Callable[[Tensor], SparseTargets | DenseTargets]
"""The targets of some scored positions, given by number among all scored ones, int64 [N]."""


def targets_of(
    rows: Sequence[Row], spec: CacheSpec, shared: SharedFiles, head_VD: Tensor
) -> TargetsAt:
    """What the loss gets of decoded rows, on the device of ``head_VD``, the teacher's, float32."""
    device = head_VD.device
    scored_RT = np.stack([row.scored() for row in rows])
    place_P = torch.from_numpy(np.flatnonzero(scored_RT)).to(device)
    if spec.targets.hidden is None:
        targets = stage_two_kinds.kind_of(spec.targets).batch_targets(rows, spec.targets)
        assert isinstance(targets, IdTargets)
        ids, tables = targets.mapped(lambda tensor: tensor.to(device)), None
        if shared.moment is not None:
            tables = tables_of(shared.moment, spec.targets.inverse_temperatures, head_VD)
        return lambda part: sparse_targets(ids, place_P[part], spec.targets, tables)
    coefficients = [row.coefficients for row in rows if row.coefficients is not None]
    states = shared.hidden_transform.states(np.stack(coefficients)[scored_RT])
    states_PD, kept = torch.from_numpy(states).to(device), None
    if spec.targets.kept is not None:
        top_k = spec.targets.logits.top_k
        kept = kept_targets(rows, top_k).mapped(lambda tensor: tensor.to(device))

    def dense(part: Tensor) -> DenseTargets:
        sparse = None if kept is None else sparse_targets(kept, place_P[part], spec.targets)
        return DenseTargets(states_PD[part], head_VD, sparse)

    return dense


def log_probabilities(
    targets: SparseTargets | DenseTargets, spec: TargetSpec, vocab_size: int, temperature: float
) -> Tensor:
    """log q of every id at ``temperature``, float64 [N, V]."""
    if isinstance(targets, DenseTargets):
        logits_NV = targets.logits(slice(0, len(targets.hidden_ND)), temperature)
        return (logits_NV.double() / temperature).log_softmax(1)
    if spec.kept is None:
        return _of_draws(targets, spec, vocab_size, temperature)
    return _of_kept(targets, spec, vocab_size, temperature)


def _of_draws(
    targets: SparseTargets, spec: TargetSpec, vocab_size: int, temperature: float
) -> Tensor:
    """Draws from all ids, and one more of all."""
    logprobs_NK, _ = targets.logprobs(temperature)
    drawn_NV = logprobs_NK.new_zeros(len(logprobs_NK), vocab_size)
    drawn_NV.scatter_add_(1, targets.kept_ids_NK, logprobs_NK.exp())
    num_draws = spec.sampling.num_draws
    return ((num_draws * drawn_NV + 1 / vocab_size) / (num_draws + 1)).log()


def _of_kept(
    targets: SparseTargets, spec: TargetSpec, vocab_size: int, temperature: float
) -> Tensor:
    """Kept ids, and the mass of the others: even, but for what draws tell of it."""
    logprobs_NK, tail_N = targets.logprobs(temperature)
    kept_NV = logprobs_NK.new_zeros(len(logprobs_NK), vocab_size)
    is_kept_NV = torch.zeros_like(kept_NV, dtype=torch.bool)
    is_kept_NV.scatter_(1, targets.kept_ids_NK, True)
    rest_NV = (~is_kept_NV).double()
    rest_NV /= rest_NV.sum(1, keepdim=True)
    if (samples := targets.samples) is not None:
        num_draws = spec.sampling.num_draws
        shares_NJ, _ = targets.sample_shares(temperature)
        shares_NJ = shares_NJ / shares_NJ.sum(1, keepdim=True).clamp_min(1e-300)
        rest_NV.scatter_add_(1, samples.ids_NJ, num_draws * shares_NJ)
        rest_NV /= rest_NV.sum(1, keepdim=True)
    kept_NV.scatter_add_(1, targets.kept_ids_NK, logprobs_NK.exp())
    return torch.where(is_kept_NV, kept_NV, rest_NV * tail_N.exp()[:, None]).clamp_min(1e-300).log()
