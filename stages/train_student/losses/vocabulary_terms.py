"""The terms that compare distributions over the vocabulary: (1−α−β)·CE + α·T²·KL.

Both come from one pass over the student's logits. Which pass it is depends on the targets: kept or
drawn ids are some outcomes of every position (``sparse_kl``), hidden states and a head stand for
all of them (``dense_kl``). The T² keeps the gradient of the KL as large as at T = 1 (Hinton et al.,
arXiv 1503.02531, section 2).
"""

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from stages.compute.compiling import Mode
from stages.train_student.data.scored import scored
from stages.train_student.data.targets.dense_targets import DenseTargets
from stages.train_student.data.targets.sparse_targets import SparseTargets
from stages.train_student.losses.dense_kl import DenseDistillationLoss
from stages.train_student.losses.loss_term import LossNormalizer, TermInputs, TermLoss
from stages.train_student.losses.sampled_softmax import SampledColumns
from stages.train_student.losses.sparse_kl import LossSums, SparseDistillationLoss
from stages.train_student.losses.terms import LossWeights
from stages.train_student.losses.vocabulary_pass import VocabularyWeights


@dataclass(frozen=True, kw_only=True)
class VocabularyTerms:
    """Cross-entropy and KL, each a mean over the scored positions of a whole step."""

    device: torch.device
    chunk: int
    """Positions whose logits exist at once."""
    dtype: torch.dtype
    """The precision of the run."""
    compile: Mode = "off"
    columns: SampledColumns | None = None
    """Chooses the head's columns that a chunk is trained on; without it, all."""

    @property
    def names(self) -> tuple[str, ...]:
        """Of the two values."""
        return ("cross_entropy", "kl")

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
            chunk=self.chunk,
            dtype=self._product_dtype,
            compile=self.compile,
            device=self.device,
            columns=self.columns,
        )

    @property
    def _product_dtype(self) -> torch.dtype:
        # A processor has instructions for bfloat16, and for float16 none.
        is_without = (self.device.type, self.dtype) == ("cpu", torch.float16)
        return torch.float32 if is_without else self.dtype

    def __call__(
        self, inputs: TermInputs, weights: LossWeights, normalizer: LossNormalizer
    ) -> TermLoss:
        """As a ``LossTerm``, but for two weights. Without α, the targets are not looked at."""
        T = weights.temperature
        both = VocabularyWeights(
            cross_entropy=weights.cross_entropy / normalizer.num_scored,
            kl=weights.alpha * T * T / normalizer.num_scored,
            temperature=T,
        )
        hidden_ND = scored(inputs.hidden_BTD, inputs.batch)
        labels_N = scored(inputs.batch.labels, inputs.batch)
        targets = inputs.targets.distribution if weights.alpha else None
        sums = self.sums(hidden_ND, inputs.head_VD, labels_N, targets, both)
        means = (sums.cross_entropy / normalizer.num_scored, sums.kl / normalizer.num_scored)
        return TermLoss(sums.weighted, means)

    def sums(
        self,
        hidden_ND: Tensor,
        head_VD: Tensor,
        labels_N: Tensor,
        targets: SparseTargets | DenseTargets | None,
        weights: VocabularyWeights,
    ) -> LossSums:
        """Sums over N positions, from the pass that is made for ``targets``; without any, labels
        need no dense one."""
        if isinstance(targets, DenseTargets):
            return self.dense_loss(hidden_ND, head_VD, labels_N, targets, weights)
        return self.sparse_loss(hidden_ND, head_VD, labels_N, targets, weights)
