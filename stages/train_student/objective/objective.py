"""The training objective of one micro-batch: (1−α−β)·CE + α·T²·KL + β·L_F.

In: the student, a ``Batch`` and the weights of the step. Out: the loss with its gradient, and its
terms. CE and KL are divided by the scored positions of the whole step, so that accumulating
micro-batches equals one large batch whatever the number of documents in each. L_F is a root over a
micro-batch, as in the paper, and averaged.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from cache_format.spec import CacheSpec, TargetSpec
from stages.train_student.batches.loader import Batch
from stages.train_student.objective.frobenius import sketched_frobenius
from stages.train_student.objective.loss import sparse_distillation_loss
from stages.train_student.objective.schedule import LossWeights
from stages.train_student.objective.sparse_targets import SparseDraws, SparseTargets
from stages.train_student.student.model import DistilXLSTMForCausalLM


@dataclass(frozen=True, kw_only=True)
class Objective:
    """What stays the same over a run. ``head_VD`` is the frozen head without its padding rows."""

    head_VD: Tensor
    spec: CacheSpec
    chunk: int
    dtype: torch.dtype

    @property
    def uses_autocast(self) -> bool:
        """Whether the blocks run in lower precision than float32."""
        return self.dtype != torch.float32

    def terms(
        self,
        model: DistilXLSTMForCausalLM,
        batch: Batch,
        weights: LossWeights,
        num_scored: int,
        num_rows: int,
    ) -> tuple[Tensor, Tensor]:
        """The differentiable loss and float64 (loss, CE, KL, L_F), each this batch's share.

        ``num_scored`` positions and ``num_rows`` rows are those of the whole optimizer step.
        """
        with torch.autocast(self.head_VD.device.type, self.dtype, enabled=self.uses_autocast):
            hidden_BTD = model.hidden_states(batch.input_ids, batch.is_document_start)
        is_scored = batch.labels >= 0
        T = weights.temperature
        sums = sparse_distillation_loss(
            hidden_BTD[is_scored],
            self.head_VD,
            batch.labels[is_scored],
            scored_targets(batch, self.spec.targets) if weights.alpha else None,
            (
                (1 - weights.alpha - weights.beta) / num_scored,
                weights.alpha * T * T / num_scored,
                T,
            ),
            self.chunk,
        )
        loss, frobenius = sums.weighted, torch.zeros_like(sums.weighted)
        if weights.beta and batch.sketch is not None and batch.projection is not None:
            scale = 1.0 if self.spec.sketch.kind == "pca" else 1 / math.sqrt(self.spec.sketch.dim)
            frobenius = sketched_frobenius(
                hidden_BTD, batch.sketch, batch.projection, scale, is_scored
            )
            frobenius = frobenius * (batch.num_rows / num_rows)
            loss = loss + weights.beta * frobenius
        terms = (loss, sums.cross_entropy / num_scored, sums.kl / num_scored, frobenius)
        return loss, torch.stack([term.detach().double() for term in terms])


def scored_targets(batch: Batch, spec: TargetSpec) -> SparseTargets:
    """The targets of the scored positions, in the order of ``batch.labels >= 0``."""
    is_scored = batch.labels >= 0
    draws = None
    if batch.drawn_ids is not None:
        assert batch.draw_counts is not None
        assert batch.drawn_gaps is not None
        assert spec.draw_inverse_temperature is not None
        draws = SparseDraws(
            batch.drawn_ids[is_scored],
            batch.draw_counts[is_scored],
            batch.drawn_gaps[is_scored],
            spec.draw_inverse_temperature,
        )
    return SparseTargets(
        batch.kept_ids[is_scored],
        batch.gaps[is_scored],
        batch.tail_log_mass[is_scored],
        spec.inverse_temperatures,
        draws,
    )
