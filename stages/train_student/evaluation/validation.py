"""Validation: how far the student is from the text and from its teacher.

In: the student and the cache's validation split. Out: mean cross-entropy and KL in nats per scored
position, top-1 agreement, accuracy and calibration error (see ``calibration``); and, on the same
positions, what the cache tells of the teacher: its cross-entropy and, unless the cache holds
nothing but samples, its accuracy and calibration error.

KL is taken at T = 1; of a cache of samples, at the temperature that these were drawn at. What it
is depends on the cache's targets, so only figures of one cache compare: of ``top_k`` it is over K+1
outcomes, of ``top_k+sampled`` an unbiased estimate of the whole, of ``sampled`` too high by what so
few draws leave open (see ``loss``). The teacher's choice is its largest logit; of a cache of
samples, the id that was drawn most.
"""

import math
from collections.abc import Iterable, Iterator

import numpy as np
import torch

from cache_format.reader import Cache
from stages.train_student.data.batch import Batch, read_batch
from stages.train_student.data.temperatures import validation_temperature
from stages.train_student.evaluation.calibration import Calibration, first_choices
from stages.train_student.losses.objective import Objective
from stages.train_student.losses.sparse_targets import scored, scored_targets
from stages.train_student.modeling.distil_xlstm.modeling import DistilXLSTMForCausalLM


def validation_batches(
    cache: Cache, num_rows: int, max_rows: int, batch_size: int
) -> Iterator[Batch]:
    """At most ``max_rows``, spread evenly over the first ``num_rows`` of the split, in batches."""
    indices = np.unique(np.linspace(0, num_rows - 1, min(max_rows, num_rows)).round().astype(int))
    for start in range(0, len(indices), batch_size):
        chosen = indices[start : start + batch_size].tolist()
        yield read_batch(cache, "validation", chosen, with_sketch=False)


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
    batches = validation_batches(cache, num_rows, max_rows, batch_size)
    return score(model, objective, batches)


@torch.no_grad()
def score(
    model: DistilXLSTMForCausalLM, objective: Objective, batches: Iterable[Batch]
) -> dict[str, float]:
    """``validate`` on ``batches``. Raises ValueError where none of their positions is scored."""
    was_training = model.training
    model.train(False)
    device = objective.device
    temperature = validation_temperature(objective.spec.targets.inverse_temperatures)
    totals = torch.zeros(4, dtype=torch.float64)
    student, teacher = Calibration(), Calibration()
    # Of samples, the id drawn most need not be the likeliest, nor its draws say how likely it is.
    knows_teacher = objective.spec.targets.kind != "sampled"
    num_scored = 0
    for batch in batches:
        on_device = batch.to(device)
        with torch.autocast(device.type, objective.dtype, enabled=objective.uses_autocast):
            hidden_BTD = model.hidden_states(on_device.input_ids, on_device.is_document_start)
        head_VD = objective.head_of(model)  # after the forward pass, which may gather it
        hidden_ND = scored(hidden_BTD, on_device)
        labels_N = scored(on_device.labels, on_device)
        targets = scored_targets(on_device, objective.spec.targets)
        sums = objective.vocabulary.sparse_loss(
            hidden_ND, head_VD, labels_N, targets, (0.0, 1.0, temperature)
        )
        found = torch.stack((sums.cross_entropy, sums.kl, sums.num_agreeing)).cpu()
        totals[:3] += found
        totals[3] -= scored(batch.next_logprob, batch).double().sum()
        num_scored += batch.num_scored
        confidence_N, choice_N = first_choices(hidden_ND, head_VD, objective.vocabulary.chunk)
        student.add(confidence_N, choice_N == labels_N)
        if knows_teacher:
            confidence_N = targets.logprobs(1.0)[0][:, 0].exp()
            teacher.add(confidence_N, targets.kept_ids_NK[:, 0] == labels_N)
    model.train(was_training)
    if num_scored == 0:
        raise ValueError("validation: no position has a label of its own document")
    loss, kl, agreement, teacher_loss = (totals / num_scored).tolist()
    metrics = {
        "validation/loss": loss,
        "validation/perplexity": _exp(loss),
        "validation/kl": kl,
        "validation/agreement": agreement,
        "validation/accuracy": student.accuracy,
        "validation/ece": student.error,
        "validation/teacher_loss": teacher_loss,
        "validation/teacher_perplexity": _exp(teacher_loss),
    }
    if knows_teacher:
        metrics["validation/teacher_accuracy"] = teacher.accuracy
        metrics["validation/teacher_ece"] = teacher.error
    return metrics


def _exp(loss: float) -> float:
    return math.exp(loss) if loss < 700 else math.inf
