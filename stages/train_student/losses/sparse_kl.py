"""Cross-entropy and forward KL against the sparse targets of a cache, through the head.

In: hidden states, the head, labels and sparse targets. Out: the weighted loss, differentiable, and
the sums behind it. With z the student's logits, q_T = softmax(z/T) and p_T the teacher's
distribution at the same temperature, the loss of a position is

    c_ce·CE + c_kl·KL(p_T ‖ q_T),   CE = −log q_1(label),   dCE/dz_j = q_1(j) − [j is the label].

**KL from sparse targets.** A cache holds the ids S that it kept, and the mass of all others, the
tail. With p_tail and q_tail that mass under teacher and student, and r_j = q_j/q_tail the student's
distribution within the tail, the chain rule of KL gives, all at temperature T,

    KL(p ‖ q) = Σ_S p_j (log p_j − log q_j)
              + p_tail (log p_tail − log q_tail)
              + p_tail · KL(p within the tail ‖ r).

The first two lines are a KL over |S| + 1 outcomes, the last being "any other id". p_tail is in the
cache and q_tail follows from the student's logits, so both sides are proper distributions: nothing
is clamped, and the value is ≥ 0 up to rounding. The gradient by z_j is (q_j − p_j)/T for j in S.
What it is in the tail depends on the kind of targets:

- ``top_k``: the third line is left out. The gradient is (q_j − p_tail·r_j)/T: the tail's mass is
  trained, and its shape stays the student's own. Against the full KL, the gradient is off by
  (p_j − p_tail·r_j)/T, and the value is too low by the third line.
- ``top_k+sampled``: the third line is estimated from m ids drawn from the tail
  (``SparseTargets.sample_shares``). With w_j the estimate of p_j, 0 for an id that was not drawn,
  the value gains Σ w_j (log p_j/p_tail − log r_j), and the gradient is (q_j − p̂_j)/T with
  p̂_j = w_j + (p_tail − Σw)·r_j. Both are unbiased for the full KL at every T within the cache's
  nodes, given exact gaps and log-masses. At the temperature of the draws, Σw = p_tail and no gap
  enters the gradient. At others, (p_tail − Σw)·r_j is a control variate: the gradient sums to 0, so
  a constant added to the student's logits adds no noise, and most of the value's noise is gone.
  Dividing w by Σw instead would be biased, and less noisy only where the two temperatures are far
  apart. The value of a position may be negative.
- Either of these with the tail's moments, for a student with the teacher's own head: the third line
  is known in some directions of hidden states, see ``tail_moment``.
- ``sampled`` (RS-KD, arXiv 2503.16870): S are the drawn ids, p̂_j = c_j/m for an id that was drawn
  c_j times of m, and there is no tail. The gradient (q_j − p̂_j)/T is unbiased for KL(p_T ‖ q_T) at
  the temperature of the draws, the only one that they are valid at. The value is too high, by
  H(p) − E[H(p̂)].

**Memory and time.** The logits of ``chunk`` positions are the largest tensor; in half precision
there is a second one, their gradient. One pass over them gives value and gradient
(``vocabulary_pass``); the few ids that labels and targets name are computed apart in float64
(``target_tokens``). Forward keeps the gradient, and backward only scales it. The gradient by the
head is computed only if the head is trained. If the head is frozen, a chunk may be trained on a
sample of its columns (``sampled_softmax``); value and gradient are then estimates.

Shapes: N scored positions, n positions of a chunk, V vocabulary, K kept ids, X target tokens, D
width, C columns of the head.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from stages.compute.compiling import Mode
from stages.compute.matmul import bfloat16_product, factor, product
from stages.train_student.data.targets.sparse_targets import SparseTargets
from stages.train_student.losses.sampled_softmax import Columns, SampledColumns
from stages.train_student.losses.tail_moment import StudentTail, TailMomentLoss
from stages.train_student.losses.target_tokens import TargetTokens, TeacherTerms, Terms
from stages.train_student.losses.vocabulary_pass import (
    DeviceWeights,
    VocabularyPass,
    VocabularyWeights,
)

FP16_LARGEST_GRADIENT = 2.0**14  # where scaling puts it, so that small q_j do not become 0


@dataclass(frozen=True)
class LossSums:
    """Sums over scored positions, in nats. ``weighted`` carries the gradient."""

    weighted: Tensor
    cross_entropy: Tensor
    kl: Tensor
    num_agreeing: Tensor


class SparseDistillationLoss:
    """The loss of a run, with what is compiled and allocated for it."""

    def __init__(
        self,
        *,
        chunk: int,
        dtype: torch.dtype,
        compile: Mode,
        device: torch.device,
        columns: SampledColumns | None = None,
    ) -> None:
        """``chunk`` positions have logits at once; products with the head have factors in
        ``dtype`` and float32 results. ``compile`` as in the settings. ``columns`` chooses those of
        the head that a gradient is taken from; without it, all.
        """
        self.chunk, self.dtype, self.columns = chunk, dtype, columns
        self.vocabulary_pass = VocabularyPass(compile, device)

    def __call__(
        self,
        hidden_ND: Tensor,
        head_VD: Tensor,
        labels_N: Tensor,
        targets: SparseTargets | None,
        weights: VocabularyWeights,
    ) -> LossSums:
        """c_ce·ΣCE + c_kl·ΣKL_T for ``weights`` = (c_ce, c_kl, T).

        Differentiable by ``hidden_ND``, and by ``head_VD`` where that asks for it. The head holds
        the V rows that take part in the softmax, padding rows excluded. ``targets`` may be absent
        when c_kl is 0. Agreement with the teacher, whose choice is the first kept id (where all are
        drawn: the one drawn most), is counted only where no gradient is asked for.
        The T² of Hinton et al. (arXiv 1503.02531) is the caller's, as part of c_kl.
        """
        is_asked = torch.is_grad_enabled()
        wanted = (is_asked and hidden_ND.requires_grad, is_asked and head_VD.requires_grad)
        sums = _ChunkedLoss.apply(  # type: ignore[no-untyped-call]
            hidden_ND, head_VD, labels_N, targets, weights, self, wanted
        )
        return LossSums(*sums)


def sparse_distillation_loss(
    hidden_ND: Tensor,
    head_VD: Tensor,
    labels_N: Tensor,
    targets: SparseTargets | None,
    weights: VocabularyWeights,
    chunk: int,
) -> LossSums:
    """The loss for once: not compiled, products in the precision of the head."""
    loss = SparseDistillationLoss(
        chunk=chunk, dtype=head_VD.dtype, compile="off", device=hidden_ND.device
    )
    return loss(hidden_ND, head_VD, labels_N, targets, weights)


class _ChunkedLoss(torch.autograd.Function):
    """Loss and gradient in one pass: backward only scales what forward kept."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden_ND: Tensor,
        head_VD: Tensor,
        labels_N: Tensor,
        targets: SparseTargets | None,
        weights: VocabularyWeights,
        loss: SparseDistillationLoss,
        wanted: tuple[bool, bool],
    ) -> tuple[Tensor, ...]:
        gradients = _Gradients(
            *(
                torch.zeros_like(tensor, dtype=torch.float32) if is_wanted else None
                for tensor, is_wanted in zip((hidden_ND, head_VD), wanted, strict=True)
            )
        )
        sums = torch.zeros(4, dtype=torch.float64, device=hidden_ND.device)
        with torch.autocast(hidden_ND.device.type, enabled=False):
            chunks = _Chunks(loss, hidden_ND, head_VD, labels_N, targets, weights)
            for start in range(0, len(labels_N), loss.chunk):
                sums += chunks.take(slice(start, start + loss.chunk), gradients)
        ctx.save_for_backward(*gradients)
        ctx.dtypes = (hidden_ND.dtype, head_VD.dtype)
        weighted, cross_entropy, kl, agreeing = sums.unbind()
        ctx.mark_non_differentiable(cross_entropy, kl, agreeing)
        return weighted.float(), cross_entropy, kl, agreeing

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, by_weighted: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        return *scaled_gradients(ctx, by_weighted), *(None,) * 5


def scaled_gradients(ctx: Any, by_weighted: Tensor) -> list[Tensor | None]:
    """The gradients that forward saved, scaled, each in its one of ``ctx.dtypes``."""
    return [
        None if gradient is None else (gradient * by_weighted).to(dtype)
        for gradient, dtype in zip(ctx.saved_tensors, ctx.dtypes, strict=True)
    ]


class _Gradients(NamedTuple):
    """float32, by what they are asked for."""

    by_hidden_ND: Tensor | None
    by_head_VD: Tensor | None


class _Chunks:
    """The chunks of one call, one after another in the same memory."""

    def __init__(
        self,
        loss: SparseDistillationLoss,
        hidden_ND: Tensor,
        head_VD: Tensor,
        labels_N: Tensor,
        targets: SparseTargets | None,
        weights: VocabularyWeights,
    ) -> None:
        self._pass, self._dtype, self._weights = loss.vocabulary_pass, loss.dtype, weights
        self._columns = loss.columns
        self._hidden_ND, self._head_VD = factor(hidden_ND, loss.dtype), factor(head_VD, loss.dtype)
        self._product = bfloat16_product if loss.dtype == torch.bfloat16 else product
        self._choice_N = None if targets is None else targets.kept_ids_NK[:, 0]
        if not weights.kl:
            targets = None
        self._tokens = TargetTokens.of(labels_N, targets)
        self._teacher = None if targets is None else TeacherTerms.of(targets, weights.temperature)
        self._device_weights = DeviceWeights.of(weights, hidden_ND.device)
        self._scale = self._largest_scale()
        is_mixed = hidden_ND.is_cuda and loss.dtype != torch.float32
        # Not in float16, in which most ids' shares of a tail would be 0.
        shares_dtype = torch.bfloat16 if is_mixed else torch.float32
        self._moments = None
        if targets is not None and targets.moments is not None:
            temperature = weights.temperature
            self._moments = TailMomentLoss.of(targets.moments, temperature, shares_dtype)
        shape = (min(loss.chunk, len(hidden_ND)), len(head_VD))
        self._logits = self._gradient = None
        is_half = (hidden_ND.is_cuda and loss.dtype != torch.float32) or loss.dtype == torch.float16
        self._gradient_dtype = loss.dtype if is_half else None
        if self._columns is not None:  # how many there are differs from chunk to chunk
            return
        if self._head_VD.dtype == torch.float32:  # other products allocate what they return
            self._logits = hidden_ND.new_empty(shape, dtype=torch.float32)
        if self._gradient_dtype is not None:
            self._gradient = hidden_ND.new_empty(shape, dtype=loss.dtype)

    def take(self, rows: slice, gradients: _Gradients) -> Tensor:
        """(weighted, CE, KL, agreeing) of one chunk, whose gradient goes to ``gradients``."""
        weights = self._weights
        is_training = any(gradient is not None for gradient in gradients)
        head_CD, tokens, columns = self._head_VD, self._tokens.chunk(rows), None
        if self._columns is not None and is_training:
            columns = self._columns.choose(tokens.ids_nX)
        if columns is not None:
            head_CD, tokens = head_CD.index_select(0, columns.ids_C), tokens.among(columns)
        hidden_nD = self._hidden_ND[rows]
        logits_nC = self._product(hidden_nD, head_CD.T, _rows_of(self._logits, hidden_nD))
        agreeing = torch.zeros((), dtype=torch.float64, device=logits_nC.device)
        if self._choice_N is not None and not is_training:
            agreeing = (logits_nC.argmax(1) == self._choice_N[rows]).double().sum()
        terms, by_logits_nC, tail = self._differentiate(logits_nC, rows, tokens, columns)
        if is_training and (weights.cross_entropy or weights.kl):
            self._add(gradients, rows, by_logits_nC, head_CD)
        kl = terms.kl
        if tail is not None:
            assert self._moments is not None
            assert self._teacher is not None
            found = self._moments.terms(rows, hidden_nD, tail, self._teacher.chunk(rows))
            kl = kl + found.kl
            if gradients.by_hidden_ND is not None:
                gradients.by_hidden_ND[rows] += found.by_hidden_nD * weights.kl
        weighted = weights.cross_entropy * terms.cross_entropy + weights.kl * kl
        return torch.stack((weighted, terms.cross_entropy, kl, agreeing))

    def _differentiate(
        self, logits_nC: Tensor, rows: slice, tokens: TargetTokens, columns: Columns | None
    ) -> tuple[Terms, Tensor, StudentTail | None]:
        """Both terms, the scaled gradient by the logits, and the tail where there are moments. The
        logits are lost."""
        teacher = None if self._teacher is None else self._teacher.chunk(rows)
        target_logits_nX = tokens.take(logits_nC)
        masses = tokens.log_masses(target_logits_nX, teacher, self._weights.temperature)
        out_nC = _rows_of(self._gradient, logits_nC)
        if out_nC is None and self._gradient_dtype is not None:
            out_nC = torch.empty_like(logits_nC, dtype=self._gradient_dtype)
        device_weights = self._device_weights.times(self._scale)
        log_weight_C = None if columns is None else columns.log_weight_C
        table_Cd = None
        if self._moments is not None:
            table_Cd = self._moments.table(None if columns is None else columns.ids_C)
        rest = self._pass(logits_nC, masses, device_weights, out_nC, log_weight_C, table_Cd)
        terms = tokens.terms(target_logits_nX, rest, teacher, self._weights)
        by_logits_nC = logits_nC if out_nC is None else out_nC
        by_target_logits_nX = (terms.gradient_nX * self._scale).to(by_logits_nC.dtype)
        by_logits_nC = by_logits_nC.scatter_add_(1, tokens.ids_nX, by_target_logits_nX)
        if table_Cd is None:
            return terms, by_logits_nC, None
        rows_nXd = table_Cd[tokens.ids_nX[:, tokens.num_kept :]]
        neg_entropy_n1, sum_nd = rest[2:]
        return terms, by_logits_nC, StudentTail(neg_entropy_n1, sum_nd, terms.log_r_nX, rows_nXd)

    def _add(
        self, gradients: _Gradients, rows: slice, by_logits_nC: Tensor, head_CD: Tensor
    ) -> None:
        """Add what follows from the scaled gradient by the logits of ``rows``."""
        if gradients.by_hidden_ND is not None:
            gradients.by_hidden_ND[rows] = self._product(by_logits_nC, head_CD) / self._scale
        if gradients.by_head_VD is None:
            return
        assert self._columns is None  # the settings do not train a head of which some is read
        hidden_nD = self._hidden_ND[rows]
        if self._dtype == torch.float32:
            gradients.by_head_VD.addmm_(by_logits_nC.T, hidden_nD)
        else:
            by_head_VD = self._product(by_logits_nC.T, hidden_nD)
            gradients.by_head_VD.add_(by_head_VD.div_(self._scale))

    def _largest_scale(self) -> Tensor:
        """What the gradient by the logits is multiplied by, for float16's sake: a power of two."""
        largest = self._device_weights.cross_entropy
        if self._dtype != torch.float16 or not len(self._hidden_ND):
            return torch.ones_like(largest)
        if self._teacher is not None:  # estimates of p_j may exceed 1, and what they leave over too
            by_tail = (self._teacher.tail_target_n1() - 0.5).abs().max() + 0.5
            by_drawn = self._teacher.drawn_nJ.sum(1).max()
            largest = largest + self._device_weights.kl * (by_tail + by_drawn).float()
        return (FP16_LARGEST_GRADIENT / largest).log2().floor().exp2()


def _rows_of(memory: Tensor | None, like: Tensor) -> Tensor | None:
    return None if memory is None else memory[: len(like)]
