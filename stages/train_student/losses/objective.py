"""The training objective of one micro-batch: (1−α−β)·CE + α·T²·KL + β·L_F.

In: the student, a ``Batch`` and the weights of the step. Out: the loss with its gradient, and its
terms. What they say of the teacher comes from the batch, or, for comparison, from the teacher in
the loop. CE and KL are divided by the scored positions of the whole step, so that accumulating
micro-batches equals one large batch whatever the number of documents in each. L_F is a root over a
micro-batch, as in the paper, and averaged.
"""

import math
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from cache_format.metadata.spec import CacheSpec
from cache_format.reader import Cache
from stages.compute.compiling import Mode
from stages.train_student.config import TrainStudentConfig
from stages.train_student.data.batch import Batch
from stages.train_student.data.scored import scored, scored_targets
from stages.train_student.losses.dense_kl import DenseDistillationLoss, DenseTargets
from stages.train_student.losses.hidden import frobenius, sketched_frobenius
from stages.train_student.losses.sampled_softmax import SampledColumns
from stages.train_student.losses.schedules import LossWeights
from stages.train_student.losses.sparse_kl import LossSums, SparseDistillationLoss
from stages.train_student.losses.teacher_in_the_loop import OnlineTeacher, TeacherStates
from stages.train_student.students.student import Student

PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class LossNormalizer:
    """What a step's sums are divided by: its scored positions and its rows, over all processes."""

    num_scored: int
    num_rows: int


@dataclass(frozen=True, kw_only=True)
class Objective:
    """What stays the same over a run."""

    head_VD: Tensor | None
    """The frozen head without its padding rows; None where the model's own is trained."""
    device: torch.device
    spec: CacheSpec
    chunk: int
    dtype: torch.dtype
    compile: Mode = "off"
    columns: SampledColumns | None = None
    """Chooses the head's columns that a chunk is trained on; without it, all."""
    teacher: OnlineTeacher | None = None
    """Asked at every step, in place of the batch's targets and sketches, if there is one."""

    @cached_property
    def sparse_loss(self) -> SparseDistillationLoss:
        """CE and KL from the cache's targets; compiled when it is first called."""
        return SparseDistillationLoss(
            chunk=self.chunk,
            dtype=self._product_dtype,
            compile=self.compile,
            device=self.device,
            columns=self.columns,
        )

    @cached_property
    def dense_loss(self) -> DenseDistillationLoss:
        """CE and KL from a teacher's own logits; compiled when it is first called."""
        return DenseDistillationLoss(
            chunk=self.chunk, dtype=self._product_dtype, compile=self.compile, device=self.device
        )

    @property
    def _product_dtype(self) -> torch.dtype:
        # A processor has instructions for bfloat16, and for float16 none.
        is_without = (self.device.type, self.dtype) == ("cpu", torch.float16)
        return torch.float32 if is_without else self.dtype

    @property
    def uses_autocast(self) -> bool:
        """Whether the blocks run in lower precision than float32."""
        return self.dtype != torch.float32

    def head_of(self, model: Student) -> Tensor:
        """The head as the loss takes it: ``head_VD``, or the model's own if that is trained."""
        if self.head_VD is not None:
            return self.head_VD
        return model.lm_head.weight[: self.spec.teacher.vocab_size]

    def terms(
        self,
        model: Student,
        batch: Batch,
        weights: LossWeights,
        share: LossNormalizer,
    ) -> tuple[Tensor, Tensor]:
        """The differentiable loss and float64 (loss, CE, KL, L_F), each this batch's ``share``."""
        # The teacher first: it waits for the device, which has nothing of this batch to do yet.
        states = self._states(batch, weights)
        with torch.autocast(self.device.type, self.dtype, enabled=self.uses_autocast):
            hidden_BTD = model.hidden_states(batch.input_ids, batch.is_document_start)
        sums = self._sums(hidden_BTD, self.head_of(model), batch, states, weights, share)
        loss, distance = sums.weighted, torch.zeros_like(sums.weighted)
        if weights.beta:
            distance = self._frobenius(hidden_BTD, batch, states)
            distance = distance * (batch.num_rows / share.num_rows)
            loss = loss + weights.beta * distance
        terms = (loss, sums.cross_entropy / share.num_scored, sums.kl / share.num_scored, distance)
        return loss, torch.stack([term.detach().double() for term in terms])

    def _states(self, batch: Batch, weights: LossWeights) -> TeacherStates | None:
        """What the teacher in the loop makes of ``batch``, if there is one and it has a say."""
        if self.teacher is None or not (weights.alpha or weights.beta):
            return None
        return self.teacher.states(batch.input_ids, batch.is_document_start)

    def _sums(
        self,
        hidden_BTD: Tensor,
        head_VD: Tensor,
        batch: Batch,
        states: TeacherStates | None,
        weights: LossWeights,
        share: LossNormalizer,
    ) -> LossSums:
        """CE and KL."""
        T = weights.temperature
        weighting = (
            (1 - weights.alpha - weights.beta) / share.num_scored,
            weights.alpha * T * T / share.num_scored,
            T,
        )
        hidden_ND, labels_N = scored(hidden_BTD, batch), scored(batch.labels, batch)
        if weights.alpha and self.teacher is not None and states is not None:
            dense = DenseTargets(scored(states.last_BTD, batch), self.teacher.head_VD)
            return self.dense_loss(hidden_ND, head_VD, labels_N, dense, weighting)
        sparse = scored_targets(batch, self.spec.targets) if weights.alpha else None
        return self.sparse_loss(hidden_ND, head_VD, labels_N, sparse, weighting)

    def _frobenius(self, hidden_BTD: Tensor, batch: Batch, states: TeacherStates | None) -> Tensor:
        """L_F of the batch; 0 where nothing tells of the teacher's hidden states."""
        is_scored = batch.labels >= 0
        if states is not None and states.mean_BTD is not None:
            return frobenius(hidden_BTD, states.mean_BTD, is_scored)
        if batch.sketch is None or batch.projection is None:
            return hidden_BTD.new_zeros(())
        scale = 1.0 if self.spec.sketch.kind == "pca" else 1 / math.sqrt(self.spec.sketch.dim)
        return sketched_frobenius(hidden_BTD, batch.sketch, batch.projection, scale, is_scored)


def make_objective(
    model: Student,
    cache: Cache,
    config: TrainStudentConfig,
    device: torch.device,
    teacher: OnlineTeacher | None = None,
) -> Objective:
    """The objective of ``model``, which learns on ``device`` what ``cache`` holds."""
    dtype = PRECISIONS[config.precision]
    # On a processor, a head in half precision would be no faster, and would round the logits.
    head_dtype = dtype if device.type == "cuda" else torch.float32
    columns = None
    if config.sampled_softmax_size is not None:
        ranks_V = torch.from_numpy(cache.ranks.ranks_by_id).to(device)
        columns = SampledColumns(ranks_V, config.sampled_softmax_size)
    return Objective(
        head_VD=frozen_head(model, cache.spec, head_dtype),
        device=device,
        spec=cache.spec,
        chunk=config.loss_chunk,
        dtype=dtype,
        compile=config.compile,
        columns=columns,
        teacher=teacher,
    )


def frozen_head(model: Student, spec: CacheSpec, dtype: torch.dtype) -> Tensor | None:
    """The head's rows that stand for ids, in ``dtype``; None where the head is trained."""
    weight: Tensor = model.lm_head.weight
    return None if weight.requires_grad else weight[: spec.teacher.vocab_size].detach().to(dtype)
