"""Validation: how far the student is from the text and from its teacher.

In: the student and the cache's validation split. Out: mean cross-entropy and KL in nats per scored
position, top-1 agreement, and the teacher's own cross-entropy on the same positions.

KL is taken at T = 1; of a cache of samples, at the temperature that these were drawn at. What it
is depends on the cache's targets, so only figures of one cache compare: of ``top_k`` it is over K+1
outcomes, of ``top_k+sampled`` an unbiased estimate of the whole, of ``sampled`` too high by what so
few draws leave open (see ``loss``). The teacher's choice is its largest logit; of a cache of
samples, the id that was drawn most.
"""

import math
from collections.abc import Iterator

import numpy as np
import torch

from cache_format.reader import Cache
from stages.train_student.batches.loader import Batch, read_batch
from stages.train_student.objective.loss import sparse_distillation_loss
from stages.train_student.objective.objective import Objective, scored_targets
from stages.train_student.student.model import DistilXLSTMForCausalLM


def validation_batches(
    cache: Cache, num_rows: int, max_rows: int, batch_size: int
) -> Iterator[Batch]:
    """At most ``max_rows``, spread evenly over the first ``num_rows`` of the split, in batches."""
    indices = np.unique(np.linspace(0, num_rows - 1, min(max_rows, num_rows)).round().astype(int))
    for start in range(0, len(indices), batch_size):
        chosen = indices[start : start + batch_size].tolist()
        yield read_batch(cache, "validation", chosen, with_sketch=False)


@torch.no_grad()
def validate(
    model: DistilXLSTMForCausalLM,
    objective: Objective,
    cache: Cache,
    *,
    num_rows: int,
    max_rows: int,
    batch_size: int,
) -> dict[str, float]:
    """Metrics of ``model`` on the validation split; the names are the keys of the result."""
    was_training = model.training
    model.train(False)
    head_VD = objective.head_VD
    temperature = 1 / objective.spec.targets.inverse_temperatures[-1]
    totals = torch.zeros(4, dtype=torch.float64)
    num_scored = 0
    for batch in validation_batches(cache, num_rows, max_rows, batch_size):
        is_scored = batch.labels >= 0
        on_device = batch.to(head_VD.device)
        with torch.autocast(head_VD.device.type, objective.dtype, enabled=objective.uses_autocast):
            hidden_BTD = model.hidden_states(on_device.input_ids, on_device.is_document_start)
        sums = sparse_distillation_loss(
            hidden_BTD[on_device.labels >= 0],
            head_VD,
            on_device.labels[on_device.labels >= 0],
            scored_targets(on_device, objective.spec.targets),
            (0.0, 1.0, temperature),
            objective.chunk,
        )
        found = torch.stack((sums.cross_entropy, sums.kl, sums.num_agreeing)).cpu()
        totals[:3] += found
        totals[3] -= batch.next_logprob[is_scored].double().sum()
        num_scored += batch.num_scored
    model.train(was_training)
    loss, kl, agreement, teacher_loss = (totals / num_scored).tolist()
    return {
        "validation/loss": loss,
        "validation/perplexity": _exp(loss),
        "validation/kl": kl,
        "validation/agreement": agreement,
        "validation/teacher_loss": teacher_loss,
        "validation/teacher_perplexity": _exp(teacher_loss),
    }


def _exp(loss: float) -> float:
    return math.exp(loss) if loss < 700 else math.inf
