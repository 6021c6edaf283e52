"""The loss over a vocabulary and its gradients, compiled or not."""

from functools import cache
from typing import Any

import pytest
import torch

from stages.compute.compiling import has_compiler
from stages.train_student.data.targets.sparse_targets import SparseTargets
from stages.train_student.losses.sparse_kl import (
    LossSums,
    SparseDistillationLoss,
)
from stages.train_student.losses.vocabulary_pass import VocabularyWeights

CPU = torch.device("cpu")
MODES = [
    "off",
    pytest.param(
        "on",
        marks=[
            pytest.mark.skipif(not has_compiler(CPU), reason="there is no C++ compiler"),
            pytest.mark.filterwarnings("ignore::DeprecationWarning"),  # PyTorch's own
        ],
    ),
]


@cache
def loss_of(mode: Any, dtype: torch.dtype = torch.float32) -> SparseDistillationLoss:
    """One for all tests, so that it is compiled once; ``chunk`` is theirs to set."""
    return SparseDistillationLoss(chunk=1, dtype=dtype, compile=mode, device=CPU)


def gradients_of(
    loss: SparseDistillationLoss,
    hidden: torch.Tensor,
    head: torch.Tensor,
    labels: torch.Tensor,
    targets: SparseTargets | None,
    weighting: VocabularyWeights,
    chunk: int,
) -> tuple[LossSums, torch.Tensor, torch.Tensor]:
    """The sums, and the gradients by ``hidden`` and ``head``."""
    leaves = [tensor.clone().requires_grad_() for tensor in (hidden, head)]
    loss.chunk = chunk
    sums = loss(leaves[0], leaves[1], labels, targets, weighting)
    by_hidden, by_head = torch.autograd.grad(sums.weighted, leaves)
    return sums, by_hidden, by_head
