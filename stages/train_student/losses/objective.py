"""The training objective of one micro-batch: (1−α−β)·CE + α·T²·KL + β·L_F, and further terms.

In: the student, a ``Batch`` and the weights of the step. Out: the loss, differentiable, and the
values of its terms. CE and KL are divided by the scored positions of the whole step, so that
accumulating micro-batches equals one large batch, however many documents each holds. L_F is a root
over a micro-batch, as in the paper, and averaged over them.
"""

import functools
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from cache_format.metadata.spec import CacheSpec
from cache_format.reader import Cache
from stages.train_student.config import TrainStudentConfig
from stages.train_student.data.batch import Batch
from stages.train_student.data.mixture import CacheMixture, mixture_of
from stages.train_student.data.targets.kind import HeadOnDevice, TargetDecoder
from stages.train_student.data.targets.mixed import MixedDecoder, make_decoders
from stages.train_student.losses.loss_term import LossNormalizer, TermInputs
from stages.train_student.losses.sampled_softmax import SampledColumns
from stages.train_student.losses.teacher_signal import (
    CachedSignal,
    OnlineSignal,
    OnlineTeacher,
    TeacherSignal,
)
from stages.train_student.losses.terms import LossWeights, WeightedTerm, further_terms
from stages.train_student.losses.vocabulary_terms import VocabularyTerms
from stages.train_student.students.student import AlignableStudent, Student

PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True, kw_only=True)
class Objective:
    """What stays the same over a run."""

    head_VD: Tensor | None
    """The frozen head without its padding rows; None where the model's own is trained."""
    device: torch.device
    spec: CacheSpec
    dtype: torch.dtype
    vocabulary: VocabularyTerms
    """Cross-entropy and KL; validation takes them as well."""
    further_terms: tuple[WeightedTerm, ...]
    decode: TargetDecoder
    """Makes the loss's targets of a batch's; validation takes them, whatever the signal."""
    signal: TeacherSignal
    """What the teacher says of a batch: from the cache, or from the teacher in the loop."""
    decoders: tuple[TargetDecoder, ...] = ()
    """Of each of several caches its own; ``decode`` is then made of them."""
    layers: tuple[int, ...] = ()
    """Whose states a term compares with those of the teacher's layers in the cache; mostly none."""
    compares_layers: bool = False
    """Whether validation compares the student's layers with the teacher's, as an alignment does."""

    @property
    def value_names(self) -> tuple[str, ...]:
        """Of the values of ``micro_batch_loss``, in order."""
        further = (name for weighted in self.further_terms for name in weighted.term.names)
        return ("loss", *self.vocabulary.names, *further)

    @property
    def uses_autocast(self) -> bool:
        """Whether the blocks run in lower precision than float32."""
        return self.dtype != torch.float32

    def of_cache(self, number: int) -> "Objective":
        """The objective for batches that are read from one of several caches alone."""
        return replace(self, decode=self.decoders[number]) if self.decoders else self

    def head_of(self, model: Student) -> Tensor:
        """The head as the loss takes it: ``head_VD``, or the model's own if that is trained."""
        if self.head_VD is not None:
            return self.head_VD
        return model.lm_head.weight[: self.spec.teacher.vocab_size]

    def micro_batch_loss(
        self,
        model: Student,
        batch: Batch,
        weights: LossWeights,
        normalizer: LossNormalizer,
    ) -> tuple[Tensor, Tensor]:
        """The differentiable loss, and float64 [len(value_names)]: it and its terms' values.

        Summed over the micro-batches of a step, on all processes, they are those of the step.
        """
        # The teacher first: it waits for the device, which has nothing of this batch to do yet.
        targets = self.signal.targets(batch, weights)
        with torch.autocast(self.device.type, self.dtype, enabled=self.uses_autocast):
            hidden_BTD, layers_BTD = self._student_states(model, batch)
        inputs = TermInputs(batch, hidden_BTD, self.head_of(model), targets, layers_BTD)
        found = [self.vocabulary(inputs, weights, normalizer)]
        for further in self.further_terms:
            found.append(further.term(inputs, further.weight(weights), normalizer))
        loss = functools.reduce(torch.add, (term.weighted for term in found))
        values = (loss, *(value for term in found for value in term.values))
        return loss, torch.stack([value.detach().double() for value in values])

    def _student_states(self, model: Student, batch: Batch) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Those that the head is applied to, and those of ``layers``."""
        if not self.layers:
            return model.hidden_states(batch.input_ids, batch.is_document_start), ()
        assert isinstance(model, AlignableStudent), "make_objective asks for layers of no other"
        states = model.layer_states(batch.input_ids, batch.is_document_start, self.layers)
        return states.hidden_BTD, states.layers_BTD


def make_objective(
    model: Student,
    cache: Cache | CacheMixture,
    config: TrainStudentConfig,
    device: torch.device,
    teacher: OnlineTeacher | None = None,
) -> Objective:
    """The objective of ``model``, which learns on ``device`` what ``cache``, or a mixture, holds.

    With ``teacher``, it learns from that, over the same rows.
    """
    mixture = mixture_of(cache)
    reference = mixture.reference
    dtype = PRECISIONS[config.precision]
    # On a processor, a head in half precision would be no faster, and would round the logits.
    head_dtype = dtype if device.type == "cuda" else torch.float32
    columns = None
    if config.sampled_softmax_size is not None:
        # Of several caches, those of one: which columns are drawn biases no sum over all ids.
        ranks_V = torch.from_numpy(reference.ranks.ranks_by_id).to(device)
        columns = SampledColumns(ranks_V, config.sampled_softmax_size)
    head_VD = frozen_head(model, reference.spec, head_dtype)
    decoders = make_decoders(mixture.caches, HeadOnDevice(device, head_dtype, head_VD))
    decode: TargetDecoder = MixedDecoder(decoders) if mixture.is_mixed else decoders[0]
    return Objective(
        head_VD=head_VD,
        device=device,
        spec=reference.spec,
        dtype=dtype,
        vocabulary=VocabularyTerms(
            device=device,
            chunk=config.loss_chunk,
            dtype=dtype,
            compile=config.compile,
            columns=columns,
        ),
        further_terms=further_terms(config),
        decode=decode,
        decoders=decoders if mixture.is_mixed else (),
        signal=CachedSignal(reference.spec, decode) if teacher is None else OnlineSignal(teacher),
        layers=_compared_layers(model, reference.spec) if config.layer_mse_weight else (),
        compares_layers=config.objective == "alignment",
    )


def frozen_head(model: Student, spec: CacheSpec, dtype: torch.dtype) -> Tensor | None:
    """The head's rows that stand for ids, in ``dtype``; None where the head is trained."""
    weight: Tensor = model.lm_head.weight
    return None if weight.requires_grad else weight[: spec.teacher.vocab_size].detach().to(dtype)


def _compared_layers(model: Student, spec: CacheSpec) -> tuple[int, ...]:
    """The layers whose states are in the cache. Raises ValueError unless ``model`` has the same."""
    assert isinstance(model, AlignableStudent), "the config refuses other kinds"
    expected = (spec.teacher.num_layers, spec.teacher.hidden_size)
    found = (model.num_layers, model.config.hidden_size)
    if found != expected:
        raise ValueError(
            f"train_student.layer_mse_weight: the cache's teacher has {expected[0]} layers of "
            f"width {expected[1]}, the student {found[0]} of width {found[1]}, which cannot be "
            "compared. Set it to 0, or make the student from the cache's teacher."
        )
    return spec.sketch.named_layers
