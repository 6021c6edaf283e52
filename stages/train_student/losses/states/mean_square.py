"""The mean square between the student's states before the head and the teacher's.

    L_S = mean ‖h_teacher − h_student‖² / D

over the scored positions of a step, h being the state after the final norm that the head is applied
to. A cache of kind ``hidden`` or ``top_k+hidden`` holds h_teacher, rounded as its targets are. KL
weighs a difference by what it does to the prediction, L_S weighs all directions alike.

N scored positions, D width.
"""

import torch

from stages.train_student.data.scored import scored
from stages.train_student.data.targets.dense_targets import DenseTargets
from stages.train_student.losses.loss_term import LossNormalizer, TermInputs, TermLoss


class StateMSETerm:
    """Its weight times L_S. Sums are divided by the scored positions of the whole step."""

    @property
    def names(self) -> tuple[str, ...]:
        """Of the one value."""
        return ("state_mse",)

    def __call__(self, inputs: TermInputs, weight: float, normalizer: LossNormalizer) -> TermLoss:
        """See ``LossTerm``."""
        distance = inputs.hidden_BTD.new_zeros((), dtype=torch.float32)
        if weight:
            targets = inputs.targets.distribution
            assert isinstance(targets, DenseTargets), "cache_needs asks for the teacher's states"
            hidden_ND = scored(inputs.hidden_BTD, inputs.batch)
            with torch.autocast(hidden_ND.device.type, enabled=False):
                difference_ND = hidden_ND.float() - targets.hidden_ND.float()
                divisor = normalizer.num_scored * hidden_ND.shape[1]
                distance = difference_ND.square().sum() / divisor
        return TermLoss(weight * distance, (distance,))
