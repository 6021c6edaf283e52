"""Cross-entropy and forward KL over the whole vocabulary, against a teacher's hidden states.

In: hidden states of student and teacher, their heads, and labels. Out: ``LossSums``, of which
``weighted`` is differentiable. The loss of a position is c_ce·CE + c_kl·KL(p_T ‖ q_T), as in
``sparse_kl``, but p_T = softmax(z_teacher/T) is known for every id: nothing is left out.

The logits of both models for ``chunk`` positions are the largest tensors. One pass over them
(``dense_pass``) gives value and gradient; backward only scales the gradient.

Where the targets name kept ids and the student's head is frozen, a chunk may be trained on a sample
of the columns of both heads (``sampled_softmax``): the kept ids and the labels, which are exact,
and others that are drawn, among which the teacher's tail, whose mass is exact, is spread by its
state. Value and gradient are then estimates.

Shapes: N scored positions, n positions of a chunk, V vocabulary, C columns of the heads, D width;
columns are [n, 1].
"""

import math
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from stages.compute.compiling import Mode
from stages.compute.matmul import bfloat16_product, factor, product
from stages.train_student.data.targets.dense_targets import DenseTargets
from stages.train_student.losses.dense_pass import DensePass
from stages.train_student.losses.sampled_softmax import Columns, SampledColumns
from stages.train_student.losses.sparse_kl import (
    FP16_LARGEST_GRADIENT,
    LossSums,
    scaled_gradients,
)
from stages.train_student.losses.vocabulary_pass import VocabularyWeights


class DenseDistillationLoss:
    """The loss of a run; like ``SparseDistillationLoss``, but with all of the teacher's logits."""

    def __init__(
        self,
        *,
        chunk: int,
        dtype: torch.dtype,
        compile: Mode,
        device: torch.device,
        columns: SampledColumns | None = None,
    ) -> None:
        """``chunk`` positions have logits at once; the student's products have factors in ``dtype``
        and float32 results, the teacher's are in its head's precision. ``compile`` as in the
        settings. ``columns`` chooses those of the heads that a gradient is taken from, for targets
        with kept ids; without it, all.
        """
        self.chunk, self.dtype, self.columns = chunk, dtype, columns
        self.dense_pass = DensePass(compile, device)

    def __call__(
        self,
        hidden_ND: Tensor,
        head_VD: Tensor,
        labels_N: Tensor,
        targets: DenseTargets,
        weights: VocabularyWeights,
    ) -> LossSums:
        """c_ce·ΣCE + c_kl·ΣKL_T for ``weights`` = (c_ce, c_kl, T).

        Differentiable by ``hidden_ND``, and by ``head_VD`` where that asks for it. Both heads hold
        the same V ids. Agreement is counted only where no gradient is asked for.
        """
        is_asked = torch.is_grad_enabled()
        wanted = (is_asked and hidden_ND.requires_grad, is_asked and head_VD.requires_grad)
        sums = _ChunkedLoss.apply(  # type: ignore[no-untyped-call]
            hidden_ND, head_VD, labels_N, targets, weights, self, wanted
        )
        return LossSums(*sums)


class _ChunkedLoss(torch.autograd.Function):
    """Loss and gradient in one pass: backward only scales what forward kept."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden_ND: Tensor,
        head_VD: Tensor,
        labels_N: Tensor,
        targets: DenseTargets,
        weights: VocabularyWeights,
        loss: DenseDistillationLoss,
        wanted: tuple[bool, bool],
    ) -> tuple[Tensor, ...]:
        gradients = [
            torch.zeros_like(tensor, dtype=torch.float32) if is_wanted else None
            for tensor, is_wanted in zip((hidden_ND, head_VD), wanted, strict=True)
        ]
        sums = torch.zeros(3, dtype=torch.float64, device=hidden_ND.device)
        with torch.autocast(hidden_ND.device.type, enabled=False):
            chunks = _Chunks(loss, hidden_ND, head_VD, targets, weights)
            for start in range(0, len(labels_N), loss.chunk):
                rows = slice(start, start + loss.chunk)
                sums += chunks.take(rows, labels_N[rows, None], gradients)
        ctx.save_for_backward(*gradients)
        ctx.dtypes = hidden_ND.dtype, head_VD.dtype
        cross_entropy, kl, agreeing = sums.unbind()
        ctx.mark_non_differentiable(cross_entropy, kl, agreeing)
        weighted = weights.cross_entropy * cross_entropy + weights.kl * kl
        return weighted.float(), cross_entropy, kl, agreeing

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, by_weighted: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        return *scaled_gradients(ctx, by_weighted), *(None,) * 5


class _Chunks:
    """The chunks of one call, one after another in the same memory."""

    def __init__(
        self,
        loss: DenseDistillationLoss,
        hidden_ND: Tensor,
        head_VD: Tensor,
        targets: DenseTargets,
        weights: VocabularyWeights,
    ) -> None:
        self._loss, self._targets, self._weights = loss, targets, weights
        self._hidden_ND, self._head_VD = factor(hidden_ND, loss.dtype), factor(head_VD, loss.dtype)
        self._product = bfloat16_product if loss.dtype == torch.bfloat16 else product
        shape = (2, min(loss.chunk, len(hidden_ND)), len(head_VD))
        self._columns = None if targets.kept is None else loss.columns
        self._logits = None
        # Half-precision products allocate what they return; how many columns are sampled differs.
        if not hidden_ND.is_cuda and self._columns is None:
            self._logits = hidden_ND.new_empty(shape, dtype=torch.float32)

    def take(self, rows: slice, label_n1: Tensor, gradients: list[Tensor | None]) -> Tensor:
        """(CE, KL, agreeing) of one chunk, whose gradient is added to ``gradients``."""
        of_student, of_teacher = (
            (None, None) if self._logits is None else self._logits[:, : len(label_n1)]
        )
        is_training = any(gradient is not None for gradient in gradients)
        columns = self._choose(rows, label_n1) if is_training else None
        if columns is None:
            head_CD, log_weight_C = self._head_VD, None
        else:
            head_CD = self._head_VD.index_select(0, columns.ids_C)
            log_weight_C, label_n1 = columns.log_weight_C, columns.places(label_n1)
        logits_nC = self._product(self._hidden_ND[rows], head_CD.T, of_student)
        teacher_nC = self._targets.logits(rows, self._weights.temperature, of_teacher, columns)
        at_label_n1 = logits_nC.gather(1, label_n1)
        agrees_n1 = torch.zeros_like(at_label_n1)
        if not is_training:
            agrees_n1[:, 0] = logits_nC.argmax(1) == teacher_nC.argmax(1)
        log_z_n1, kl_n1 = self._loss.dense_pass(logits_nC, teacher_nC, self._weights, log_weight_C)
        if is_training:
            by_label_n1 = torch.full_like(at_label_n1, -self._weights.cross_entropy)
            self._add(gradients, rows, logits_nC.scatter_add_(1, label_n1, by_label_n1), head_CD)
        found = (log_z_n1 - at_label_n1, kl_n1, agrees_n1)
        return torch.cat(found, 1).double().sum(0)

    def _choose(self, rows: slice, label_n1: Tensor) -> Columns | None:
        """The columns for a chunk; None for all."""
        if self._columns is None or self._targets.kept is None:
            return None
        kept_ids_nK = self._targets.kept.kept_ids_NK[rows]
        return self._columns.choose(torch.cat((label_n1, kept_ids_nK), 1))

    def _add(
        self,
        gradients: list[Tensor | None],
        rows: slice,
        by_logits_nV: Tensor,
        head_CD: Tensor,
    ) -> None:
        """Add what follows from the gradient by the logits of ``rows``, which is lost."""
        by_hidden_ND, by_head_VD = gradients
        scale = 1.0
        if self._loss.dtype == torch.float16:
            weights = self._weights
            largest = weights.cross_entropy + weights.kl / weights.temperature
            scale = 2.0 ** math.floor(math.log2(FP16_LARGEST_GRADIENT / largest))
            by_logits_nV = factor(by_logits_nV.mul_(scale), torch.float16)
        if by_hidden_ND is not None:
            by_hidden_ND[rows] = self._product(by_logits_nV, head_CD).div_(scale)
        if by_head_VD is not None:
            by_head_VD += self._product(by_logits_nV.T, self._hidden_ND[rows]).div_(scale)
