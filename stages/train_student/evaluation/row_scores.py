"""What a student scores on each row of a split, so that two students can be compared row by row.

In: the student and batches of a cache. Out: per row sums over its scored positions, whose totals
are those of ``divergence``: cross-entropy and KL in nats, and how often the first choices agree.

R rows, T positions, D width.
"""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from cache_format.reader import Cache
from stages.train_student.data.batch import Batch
from stages.train_student.data.scored import scored
from stages.train_student.data.temperatures import validation_temperature
from stages.train_student.evaluation.divergence import Divergence
from stages.train_student.evaluation.validation import hidden_states
from stages.train_student.evaluation.validation_metric import ScoredPositions
from stages.train_student.losses.objective import Objective
from stages.train_student.students.student import Student


@dataclass(frozen=True, kw_only=True)
class RowScores:
    """Sums over the scored positions of each row; the four have an item for each row."""

    num_scored: tuple[int, ...]
    cross_entropy: tuple[float, ...]
    kl: tuple[float, ...]
    num_agreeing: tuple[float, ...]


@torch.no_grad()
def score_rows(model: Student, objective: Objective, batches: Iterable[Batch]) -> RowScores:
    """The rows of ``batches``, in order; one without a scored position has sums of zero."""
    was_training = model.training
    model.train(False)
    temperature = validation_temperature(objective.spec.targets.inverse_temperatures)
    counts: list[int] = []
    sums: list[list[float]] = []
    for batch in batches:
        on_device = batch.to(objective.device)
        hidden_RTD = hidden_states(model, objective, on_device) if batch.num_scored else None
        for own in _positions_of_rows(batch):
            divergence = Divergence(objective.vocabulary, temperature)
            if hidden_RTD is not None and len(own):
                part = replace(on_device, scored=own.to(objective.device))
                divergence.add(_positions(model, objective, hidden_RTD, part))
            counts.append(len(own))
            sums.append(divergence.sums)
    model.train(was_training)
    cross_entropy, kl, num_agreeing = zip(*sums, strict=True) if sums else ((), (), ())
    return RowScores(
        num_scored=tuple(counts),
        cross_entropy=cross_entropy,
        kl=kl,
        num_agreeing=num_agreeing,
    )


def shards_hash(cache: Cache) -> str:
    """What the validation split of ``cache`` holds: a hash over those of its shards."""
    hashes = "".join(shard.sha256 for shard in cache.shards("validation"))
    return hashlib.sha256(hashes.encode()).hexdigest()


def _positions_of_rows(batch: Batch) -> list[Tensor]:
    """The part of ``batch.scored`` that lies in each row."""
    num_rows, num_positions = batch.input_ids.shape
    ends = torch.arange(1, num_rows + 1) * num_positions
    counts = torch.searchsorted(batch.scored, ends).diff(prepend=torch.zeros(1, dtype=torch.int64))
    return list(torch.split(batch.scored, counts.tolist()))


def _positions(
    model: Student, objective: Objective, hidden_RTD: Tensor, batch: Batch
) -> ScoredPositions:
    return ScoredPositions(
        hidden_ND=scored(hidden_RTD, batch),
        head_VD=objective.head_of(model),
        labels_N=scored(batch.labels, batch),
        targets=objective.decode(batch.targets, batch.scored),
        next_logprob_N=None,
    )
