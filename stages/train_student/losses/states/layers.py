"""The mean square between single layers of a student that runs free and its teacher's.

    L_L = mean ‖Sᵀ(h_teacher − h_student)‖² / ‖Sᵀh_teacher‖²

over the scored positions of a step and the layers of a cache whose ``hidden_states`` are
``each:ℓ,…``, h being what a layer gives, and of the last layer the state after the final norm. S is
the cache's projection. 0 is the teacher's state, 1 what a student of zeros would have.

Errors are relative, to the teacher's own state at the same layer and position:

- The residual stream grows with depth, and a few positions, mostly a document's first, have norms
  hundreds of times those of others (Sun et al., arXiv 2402.17762). Absolute squares would be those
  of the last layers and of these positions alone; here each layer and each position counts alike.
- The divisor is a function of its position, and nothing is divided by what is summed over a
  micro-batch. So sums over micro-batches and processes are those of the step, however it is cut;
  nothing has to be fitted before training or kept in checkpoints.

The width has no part in a ratio. Of random signs, numerator and divisor have the same S: with
h_teacher − h_student = a·h_teacher + e, e at a right angle to h_teacher, what is along h_teacher,
a², is exact, and the share of e is too high by d/(d − 2) on average (3 % at d = 64), as divisor and
numerator are then about independent. Of principal components it is the error within them alone.

B rows, T positions, N of them scored, L layers, D width, d width of the projection.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from stages.train_student.data.batch import Batch
from stages.train_student.data.scored import scored
from stages.train_student.losses.loss_term import LossNormalizer, TermInputs, TermLoss


class LayerMSETerm:
    """Its weight times L_L. Sums are divided by the scored positions of the whole step."""

    @property
    def names(self) -> tuple[str, ...]:
        """Of the one value."""
        return ("layer_mse",)

    def __call__(self, inputs: TermInputs, weight: float, normalizer: LossNormalizer) -> TermLoss:
        """See ``LossTerm``."""
        distance = inputs.hidden_BTD.new_zeros((), dtype=torch.float32)
        if weight:
            teacher = inputs.targets.layers
            assert teacher is not None, "cache_needs asks for the teacher's layers"
            errors_NL = teacher.relative_errors(inputs.layers_BTD, inputs.batch)
            distance = errors_NL.sum() / (normalizer.num_scored * errors_NL.shape[1])
        return TermLoss(weight * distance, (distance,))


@dataclass(frozen=True)
class ProjectedLayers:
    """The states of several layers of the teacher as a cache holds them."""

    sketch_BTLd: Tensor
    projection_BDd: Tensor
    """With ``scale``, S: a matrix for each row, or one for all."""
    scale: float

    def relative_errors(self, layers_BTD: Sequence[Tensor], batch: Batch) -> Tensor:
        """‖Sᵀ(h_teacher − h_student)‖² / ‖Sᵀh_teacher‖² at scored positions, float32 [N, L].

        0 where the teacher's projection is 0, to which nothing can be relative.
        """
        with torch.autocast(self.sketch_BTLd.device.type, enabled=False):
            matrix_BDd = self.projection_BDd.float() * self.scale
            projected_NLd = torch.stack(
                [scored(layer_BTD.float() @ matrix_BDd, batch) for layer_BTD in layers_BTD], 1
            )
            teacher_NLd = scored(self.sketch_BTLd, batch)
            squares_NL = teacher_NLd.square().sum(2)
            is_any_NL = squares_NL >= torch.finfo(squares_NL.dtype).tiny
            divisors_NL = torch.where(is_any_NL, squares_NL, torch.inf)
            return (projected_NLd - teacher_NLd).square().sum(2) / divisors_NL
