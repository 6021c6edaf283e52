"""The fused losses on a GPU, compiled and not, against the dense formula in float64.

N positions, V vocabulary, D width, K kept ids.
"""

from typing import Any

import pytest
import torch
from torch import Tensor

from stages.compute.compiling import has_compiler
from stages.train_student.data.targets.dense_targets import DenseTargets
from stages.train_student.data.targets.sparse_targets import SparseTargets
from stages.train_student.losses.dense_kl import DenseDistillationLoss
from stages.train_student.losses.sparse_kl import LossSums, SparseDistillationLoss
from stages.train_student.losses.vocabulary_pass import VocabularyWeights
from tests.support.dense_teachers import make_problem, sparse, with_draws, with_moments
from tests.support.devices import moved

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),  # PyTorch's own
]
NUM, VOCABULARY, WIDTH, TOP_K, CHUNK = 41, 3_001, 32, 16, 12
WEIGHTING = VocabularyWeights(0.3, 1.7, 1.6)
# Relative to the norm: what rounding the factors of a product to so many bits leaves.
BOUNDS = {torch.float32: 1e-5, torch.bfloat16: 3e-2, torch.float16: 4e-3}
precisions = pytest.mark.parametrize("dtype", BOUNDS, ids=str)


def require_compiler(device: torch.device, mode: str) -> None:
    if mode == "on" and not has_compiler(device):
        pytest.skip(f"there is no compiler for {device.type}")


@pytest.mark.parametrize("mode", ["off", "on"])
@precisions
def test_kept_logits_have_the_loss_of_the_dense_formula(
    device: torch.device, dtype: torch.dtype, mode: Any
) -> None:
    require_compiler(device, mode)
    hidden_ND, head_VD, labels_N, teacher_NV = _problem(dtype)
    targets = sparse(teacher_NV, [TOP_K] * NUM, TOP_K)
    loss = SparseDistillationLoss(chunk=CHUNK, dtype=dtype, compile=mode, device=device)
    leaf_ND = hidden_ND.to(device).requires_grad_()
    head = head_VD.to(device, dtype if device.type == "cuda" else torch.float32)
    sums = loss(leaf_ND, head, labels_N.to(device), moved(targets, device), WEIGHTING)

    exact_ND = hidden_ND.double().requires_grad_()
    logits_NV = exact_ND @ head_VD.double().T
    p_NV, q_NV = ((z / WEIGHTING.temperature).softmax(1) for z in (teacher_NV, logits_NV))
    p_NK, q_NK = (x.gather(1, targets.kept_ids_NK) for x in (p_NV, q_NV))
    p_tail, q_tail = (1 - x.sum(1) for x in (p_NK, q_NK))
    kl = (p_NK * (p_NK / q_NK).log()).sum() + (p_tail * (p_tail / q_tail).log()).sum()
    cross_entropy = torch.nn.functional.cross_entropy(logits_NV, labels_N, reduction="sum")
    _assert_equal(sums, leaf_ND, (cross_entropy, kl), exact_ND, BOUNDS[dtype])


@pytest.mark.parametrize("mode", ["off", "on"])
@precisions
def test_hidden_states_have_the_loss_of_the_dense_formula(
    device: torch.device, dtype: torch.dtype, mode: Any
) -> None:
    require_compiler(device, mode)
    hidden_ND, head_VD, labels_N, _ = _problem(dtype)
    generator = torch.Generator().manual_seed(1)
    states_ND = torch.randn(NUM, WIDTH, generator=generator)
    teacher_head_VD = (torch.randn(VOCABULARY, WIDTH, generator=generator) * 0.5).to(dtype).float()
    head_dtype = dtype if device.type == "cuda" else torch.float32
    targets = DenseTargets(states_ND.to(device), teacher_head_VD.to(device, head_dtype))
    loss = DenseDistillationLoss(chunk=CHUNK, dtype=dtype, compile=mode, device=device)
    leaf_ND = hidden_ND.to(device).requires_grad_()
    head = head_VD.to(device, head_dtype)
    sums = loss(leaf_ND, head, labels_N.to(device), targets, WEIGHTING)

    exact_ND = hidden_ND.double().requires_grad_()
    logits_NV = exact_ND @ head_VD.double().T
    teacher_NV = states_ND.to(dtype).double() @ teacher_head_VD.double().T
    log_p, log_q = ((z / WEIGHTING.temperature).log_softmax(1) for z in (teacher_NV, logits_NV))
    kl = (log_p.exp() * (log_p - log_q)).sum()
    cross_entropy = torch.nn.functional.cross_entropy(logits_NV, labels_N, reduction="sum")
    _assert_equal(sums, leaf_ND, (cross_entropy, kl), exact_ND, BOUNDS[dtype])


@pytest.mark.parametrize("kind", ["top_k", "draws", "moments"])
@precisions
def test_every_part_of_targets_has_the_loss_of_a_processor(
    device: torch.device, dtype: torch.dtype, kind: str
) -> None:
    hidden_ND, head_VD, labels_N, teacher_NV = _problem(dtype)
    targets = _targets(kind, teacher_NV, head_VD)
    found = _loss_and_gradient(device, dtype, hidden_ND, head_VD, labels_N, targets)
    cpu = torch.device("cpu")
    expected = _loss_and_gradient(cpu, torch.float32, hidden_ND, head_VD, labels_N, targets)
    for ours, theirs in zip(found, expected, strict=True):
        assert _distance(ours.cpu(), theirs) < 2 * BOUNDS[dtype]


def _targets(kind: str, teacher_NV: Tensor, head_VD: Tensor) -> SparseTargets:
    targets = sparse(teacher_NV, [TOP_K] * NUM, TOP_K)
    if kind == "draws":
        generator = torch.Generator().manual_seed(2)
        return with_draws(targets, teacher_NV, 30, 4 / 3, generator)
    if kind == "moments":
        generator = torch.Generator().manual_seed(3)
        basis_dD = torch.linalg.qr(torch.randn(WIDTH, 8, generator=generator))[0].T.contiguous()
        return with_moments(targets, teacher_NV, head_VD, basis_dD)
    return targets


def _loss_and_gradient(
    device: torch.device,
    dtype: torch.dtype,
    hidden_ND: Tensor,
    head_VD: Tensor,
    labels_N: Tensor,
    targets: SparseTargets,
) -> tuple[Tensor, Tensor]:
    loss = SparseDistillationLoss(chunk=CHUNK, dtype=dtype, compile="off", device=device)
    leaf_ND = hidden_ND.to(device).requires_grad_()
    head = head_VD.to(device, dtype if device.type == "cuda" else torch.float32)
    sums = loss(leaf_ND, head, labels_N.to(device), moved(targets, device), WEIGHTING)
    return sums.weighted.detach(), torch.autograd.grad(sums.weighted, leaf_ND)[0]


def _problem(dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Of numbers that ``dtype`` has, so that only what is computed with them is rounded."""
    hidden_ND, head_VD, labels_N, teacher_NV = make_problem(5, NUM, VOCABULARY, WIDTH)
    return hidden_ND.to(dtype).float(), head_VD.to(dtype).float(), labels_N, teacher_NV


def _assert_equal(
    sums: LossSums,
    leaf_ND: Tensor,
    exact: tuple[Tensor, Tensor],
    exact_ND: Tensor,
    bound: float,
) -> None:
    cross_entropy, kl = exact
    assert sums.cross_entropy.item() == pytest.approx(cross_entropy.item(), rel=bound)
    assert sums.kl.item() == pytest.approx(kl.item(), rel=bound)
    (found,) = torch.autograd.grad(sums.weighted, leaf_ND)
    weighted = WEIGHTING.cross_entropy * cross_entropy + WEIGHTING.kl * kl
    (expected,) = torch.autograd.grad(weighted, exact_ND)
    assert _distance(found.cpu(), expected) < bound


def _distance(found: Tensor, expected: Tensor) -> float:
    """Relative to the norm of ``expected``."""
    difference = torch.linalg.vector_norm(found.double() - expected.double())
    return float(difference / torch.linalg.vector_norm(expected.double()))
