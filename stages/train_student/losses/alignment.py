"""Alignment of a student's layers with the teacher's layers in whose place they are.

    L = Σ_l mean ‖h_l − ĥ_l‖² / W        (arXiv 2603.15590, section 3, first stage)

h_l is what the teacher's attention of layer l gives before its output projection, ĥ_l what the
student's mixer gives from the same inputs; the mean is over all positions of a step's rows, and W
numbers of a position are averaged, so that models of all widths have the same scale. Packed rows
have no padding, and every position is within a document; labels do not matter.

L layers with a mixer, B rows, T positions, W width of all heads together.
"""

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from stages.train_student.data.batch import Batch
from stages.train_student.losses.loss_term import LossNormalizer
from stages.train_student.losses.terms import LossWeights
from stages.train_student.students.student import AlignableStudent, Student


class TrainingLoss(Protocol):
    """What a run minimizes: an ``Objective``, or an alignment."""

    @property
    def value_names(self) -> tuple[str, ...]:
        """Of the values of ``micro_batch_loss``, in order; the first is the loss."""

    def micro_batch_loss(
        self, model: Student, batch: Batch, weights: LossWeights, normalizer: LossNormalizer
    ) -> tuple[Tensor, Tensor]:
        """The differentiable loss, and float64 [len(value_names)].

        Summed over the micro-batches of a step, on all processes, they are those of the step.
        """


@dataclass(frozen=True, kw_only=True)
class AlignmentLoss:
    """The loss of an alignment. It reads token ids alone, and makes no logits."""

    device: torch.device
    dtype: torch.dtype

    @property
    def value_names(self) -> tuple[str, ...]:
        """``loss`` is the sum over layers, ``alignment`` their mean."""
        return ("loss", "alignment")

    def micro_batch_loss(
        self, model: Student, batch: Batch, weights: LossWeights, normalizer: LossNormalizer
    ) -> tuple[Tensor, Tensor]:
        """See ``TrainingLoss``. It has no weights."""
        errors_L = layer_errors(_alignable(model), batch, self.dtype)
        num_positions = normalizer.num_rows * batch.input_ids.shape[1]
        loss = errors_L.sum() / num_positions
        value = loss.detach().double()
        return loss, torch.stack([value, value / len(errors_L)])


def layer_errors(model: AlignableStudent, batch: Batch, dtype: torch.dtype) -> Tensor:
    """‖h − ĥ‖²/W of each layer, summed over all positions of ``batch``: differentiable [L]."""
    device_type = batch.input_ids.device.type
    with torch.autocast(device_type, dtype, enabled=dtype != torch.float32):
        errors_LBT = model.alignment(batch.input_ids, batch.is_document_start).errors_LBT
    return errors_LBT.sum((1, 2)) / model.attention_width


def _alignable(model: Student) -> AlignableStudent:
    assert isinstance(model, AlignableStudent), "the config refuses other kinds"
    return model
