"""The Frobenius term β·L_F: how far the student's hidden states are from the teacher's.

    L_F = ‖H_teacher − H_student‖_F / √numel        (Distil-xLSTM, arXiv 2503.18565)

over scored positions, H_teacher being the mean over the teacher's layers and H_student the output
of the stack after its final norm. A cache holds H_teacher projected to d numbers a position, from
which L_F is estimated.

B rows, T positions, D width, d width of the projection.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from stages.train_student.losses.loss_term import LossNormalizer, TermInputs, TermLoss

_NO_INFINITE_SLOPE = 1e-20  # under the root, where student and teacher agree exactly


class FrobeniusTerm:
    """β·L_F. A root over a micro-batch, as in the paper, and averaged over those of a step."""

    @property
    def names(self) -> tuple[str, ...]:
        """Of the one value."""
        return ("frobenius",)

    def __call__(self, inputs: TermInputs, weight: float, normalizer: LossNormalizer) -> TermLoss:
        """See ``LossTerm``. Also 0 where nothing tells of the teacher's hidden states."""
        states, batch = inputs.targets.hidden_states, inputs.batch
        distance = inputs.hidden_BTD.new_zeros((), dtype=torch.float32)
        if weight and states is not None:
            distance = states.frobenius(inputs.hidden_BTD, batch.labels >= 0)
            distance = distance * (batch.num_rows / normalizer.num_rows)
        return TermLoss(weight * distance, (distance,))


@dataclass(frozen=True)
class ProjectedStates:
    """The teacher's hidden states as a cache holds them; see ``sketched_frobenius``."""

    sketch_BTd: Tensor
    projection_BDd: Tensor
    scale: float

    def frobenius(self, hidden_BTD: Tensor, is_scored_BT: Tensor) -> Tensor:
        """L_F, estimated."""
        return sketched_frobenius(
            hidden_BTD, self.sketch_BTd, self.projection_BDd, self.scale, is_scored_BT
        )


@dataclass(frozen=True)
class WholeStates:
    """The teacher's hidden states themselves."""

    teacher_BTD: Tensor

    def frobenius(self, hidden_BTD: Tensor, is_scored_BT: Tensor) -> Tensor:
        """L_F."""
        return frobenius(hidden_BTD, self.teacher_BTD, is_scored_BT)


def sketched_frobenius(
    hidden_BTD: Tensor,
    sketch_BTd: Tensor,
    projection_BDd: Tensor,
    scale: float,
    is_scored_BT: Tensor,
) -> Tensor:
    """L_F over scored positions, estimated from the projections ``sketch_BTd`` = Sᵀh_teacher.

    With S = ``scale``·``projection_BDd`` (one matrix for each row, or one for all), the mean over
    positions of ‖Sᵀ(h_teacher − h_student)‖²/D estimates the mean square, and its root is L_F.
    For random signs and scale 1/√d, E[‖Sᵀx‖²] = ‖x‖²: the mean square is unbiased. For orthonormal
    columns and scale 1, only the part of the difference within their d directions is counted: the
    estimate is never too high, and too low by what lies outside.
    """
    with torch.autocast(hidden_BTD.device.type, enabled=False):
        width = hidden_BTD.shape[2]
        projected_BTd = hidden_BTD.float() @ projection_BDd.float() * scale
        return _root_mean_square(projected_BTd - sketch_BTd, width, is_scored_BT)


def frobenius(hidden_BTD: Tensor, teacher_BTD: Tensor, is_scored_BT: Tensor) -> Tensor:
    """L_F over scored positions, from the teacher's hidden states themselves."""
    with torch.autocast(hidden_BTD.device.type, enabled=False):
        difference_BTD = hidden_BTD.float() - teacher_BTD.float()
        return _root_mean_square(difference_BTD, hidden_BTD.shape[2], is_scored_BT)


def _root_mean_square(difference_BTd: Tensor, width: int, is_scored_BT: Tensor) -> Tensor:
    """Root of the mean of ‖difference‖²/width over scored positions; of none of them, 0."""
    squares_BT = difference_BTd.square().sum(2) * is_scored_BT
    mean_square = squares_BT.sum() / (is_scored_BT.sum().clamp_min(1) * width)
    return (mean_square + _NO_INFINITE_SLOPE).sqrt()
