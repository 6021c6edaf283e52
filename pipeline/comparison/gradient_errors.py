"""How far the gradient of a loss from a cache is from that of the whole distribution.

The gradient is that of KL(p_T ‖ q_T) by the student's hidden states, the loss's own. Bias is the
norm of its mean error over draws, noise that of its standard deviation at one position, both over
the norm of the true gradient. What draws alone would add to the bias is subtracted, on average:
below a twentieth of the noise, it is chance. Noise falls with the root of the positions of a step;
bias does not.

N positions, V vocabulary, D width, R draws of the same rows.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from stages.train_student.data.targets.dense_targets import DenseTargets
from stages.train_student.data.targets.sparse_targets import SparseTargets
from stages.train_student.losses.dense_kl import DenseDistillationLoss
from stages.train_student.losses.sparse_kl import SparseDistillationLoss
from stages.train_student.losses.vocabulary_pass import VocabularyWeights

_CHUNK = 64


@dataclass(frozen=True)
class GradientErrors:
    """Relative to the norm of the true gradient."""

    bias: float
    noise: float


@dataclass(frozen=True)
class Student:
    """A student at N positions; its head is the teacher's, as that of most students."""

    states_ND: Tensor
    head_VD: Tensor
    """float32"""
    labels_N: Tensor

    def kl_gradient(
        self, targets: SparseTargets | DenseTargets, temperature: float
    ) -> tuple[float, Tensor]:
        """Mean KL in nats, and the gradient of its sum by the hidden states, float64 [N, D]."""
        leaf_ND = self.states_ND.clone().requires_grad_()
        weights = VocabularyWeights(0.0, 1.0, temperature)
        dtype, device = self.head_VD.dtype, leaf_ND.device
        with torch.enable_grad():
            if isinstance(targets, DenseTargets):
                dense = DenseDistillationLoss(
                    chunk=_CHUNK, dtype=dtype, compile="off", device=device
                )
                sums = dense(leaf_ND, self.head_VD, self.labels_N, targets, weights)
            else:
                sparse = SparseDistillationLoss(
                    chunk=_CHUNK, dtype=dtype, compile="off", device=device
                )
                sums = sparse(leaf_ND, self.head_VD, self.labels_N, targets, weights)
            (gradient_ND,) = torch.autograd.grad(sums.weighted, leaf_ND)
        return float(sums.kl) / len(leaf_ND), gradient_ND.double()


def gradient_errors(gradients: Sequence[Tensor], true_ND: Tensor) -> GradientErrors:
    """Bias and noise of R gradients, each of other draws; of a single one, which has no noise."""
    gradients_RND = torch.stack(list(gradients))
    num_draws = len(gradients_RND)
    variance = gradients_RND.var(0).sum().item() if num_draws > 1 else 0.0
    square = (gradients_RND.mean(0) - true_ND).square().sum().item() - variance / num_draws
    norm = true_ND.norm().item()
    return GradientErrors(bias=math.sqrt(max(square, 0.0)) / norm, noise=math.sqrt(variance) / norm)
