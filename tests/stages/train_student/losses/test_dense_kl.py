"""The chunked loss over the whole vocabulary against the dense float64 formula."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from stages.compute.compiling import has_compiler
from stages.train_student.data.targets.dense_targets import DenseTargets
from stages.train_student.losses import vocabulary_pass
from stages.train_student.losses.dense_kl import DenseDistillationLoss
from stages.train_student.losses.sparse_kl import LossSums, sparse_distillation_loss
from stages.train_student.losses.states.frobenius import frobenius
from stages.train_student.losses.vocabulary_pass import VocabularyWeights
from tests.support.dense_teachers import make_problem, sparse


def make_teacher(seed: int, num_positions: int, vocab: int, width: int = 12) -> DenseTargets:
    """Hidden states of another width than the student's, and a head: logits of some ±5."""
    generator = torch.Generator().manual_seed(seed + 1)
    hidden = torch.randn(num_positions, width, generator=generator)
    return DenseTargets(hidden, torch.randn(vocab, width, generator=generator) * 0.7)


def dense_distillation_loss(
    hidden: torch.Tensor,
    head: torch.Tensor,
    labels: torch.Tensor,
    teacher: DenseTargets,
    weighting: VocabularyWeights,
    chunk: int,
) -> LossSums:
    """The loss for once: not compiled, products in the precision of the head."""
    loss = DenseDistillationLoss(chunk=chunk, dtype=head.dtype, compile="off", device=hidden.device)
    return loss(hidden, head, labels, teacher, weighting)


def dense(
    hidden: torch.Tensor,
    head: torch.Tensor,
    labels: torch.Tensor,
    teacher: DenseTargets,
    temperature: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    """ΣCE and ΣKL in float64, differentiable by ``hidden``."""
    logits = hidden.double() @ head.double().T
    target = teacher.hidden_ND.double() @ teacher.head_VD.double().T
    cross_entropy = torch.nn.functional.cross_entropy(logits, labels, reduction="sum")
    log_p, log_q = ((x / temperature).log_softmax(1) for x in (target, logits))
    return cross_entropy, (log_p.exp() * (log_p - log_q)).sum()


@settings(max_examples=60)
@given(
    seed=st.integers(0, 10_000),
    num_positions=st.integers(1, 9),
    vocab=st.integers(2, 70),
    temperature=st.floats(1.0, 8.0),
    weighting=st.sampled_from([(1.0, 0.0), (0.0, 1.0), (0.3, 1.7)]),
    chunk=st.integers(1, 10),
)
def test_values_and_gradients_equal_the_dense_formula(
    seed: int,
    num_positions: int,
    vocab: int,
    temperature: float,
    weighting: tuple[float, float],
    chunk: int,
) -> None:
    hidden, head, labels, _ = make_problem(seed, num_positions, vocab)
    teacher = make_teacher(seed, num_positions, vocab)
    leaf, exact = hidden.clone().requires_grad_(), hidden.double().requires_grad_()
    cross_entropy, kl = dense(exact, head, labels, teacher, temperature)
    weighted = weighting[0] * cross_entropy + weighting[1] * kl
    (by_exact,) = torch.autograd.grad(weighted, exact)
    sums = dense_distillation_loss(
        leaf, head, labels, teacher, VocabularyWeights(*weighting, temperature), chunk
    )
    (by_leaf,) = torch.autograd.grad(3 * sums.weighted, leaf)
    for found, expected in (
        (sums.cross_entropy, cross_entropy),
        (sums.kl, kl),
        (sums.weighted, weighted),
    ):
        assert found.item() / num_positions == pytest.approx(
            expected.item() / num_positions, abs=1e-5
        )
    torch.testing.assert_close(by_leaf / 3, by_exact.float(), atol=1e-5, rtol=1e-5)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # PyTorch's own
def test_the_compiled_loss_equals_the_eager_one(monkeypatch: pytest.MonkeyPatch) -> None:
    device = torch.device("cpu")
    if not has_compiler(device):
        pytest.skip("no C++ compiler")
    monkeypatch.setattr(vocabulary_pass, "_CACHED_BYTES", 3 * 8 * 300)  # three rows at a time
    hidden, head, labels, _ = make_problem(2, 9, 300)
    teacher = make_teacher(2, 9, 300)
    compiled = DenseDistillationLoss(chunk=8, dtype=torch.float32, compile="on", device=device)
    for weighting in (VocabularyWeights(0.3, 1.7, 1.5), VocabularyWeights(0.5, 0.5, 1.0)):
        leaf = hidden.clone().requires_grad_()
        expected = dense_distillation_loss(leaf, head, labels, teacher, weighting, 8)
        found = compiled(leaf, head, labels, teacher, weighting)
        for ours, plain in zip(
            (found.weighted, *torch.autograd.grad(found.weighted, leaf)),
            (expected.weighted, *torch.autograd.grad(expected.weighted, leaf)),
            strict=True,
        ):
            torch.testing.assert_close(ours, plain, rtol=1e-5, atol=1e-6)
    assert compiled.dense_pass.is_compiled


def test_a_trained_head_receives_its_gradient() -> None:
    hidden, head, labels, _ = make_problem(6, 7, 40)
    teacher = make_teacher(6, 7, 40)
    leaf, exact = head.clone().requires_grad_(), head.double().requires_grad_()
    cross_entropy, kl = dense(hidden, exact, labels, teacher, 1.5)
    (expected,) = torch.autograd.grad(0.4 * cross_entropy + 0.9 * kl, exact)
    sums = dense_distillation_loss(
        hidden, leaf, labels, teacher, VocabularyWeights(0.4, 0.9, 1.5), 3
    )
    (found,) = torch.autograd.grad(sums.weighted, leaf)
    torch.testing.assert_close(found, expected.float(), atol=1e-5, rtol=1e-5)
    with torch.no_grad():
        own = DenseTargets(hidden, head)
        counted = dense_distillation_loss(
            hidden, leaf, labels, own, VocabularyWeights(0.4, 0.9, 1.5), 3
        )
    assert counted.num_agreeing.item() == 7


def test_the_dense_loss_equals_the_sparse_loss_of_all_ids() -> None:
    hidden, head, labels, _ = make_problem(4, 8, 50)
    teacher = make_teacher(4, 8, 50)
    exact = teacher.hidden_ND.double() @ teacher.head_VD.double().T
    found = dense_distillation_loss(
        hidden, head, labels, teacher, VocabularyWeights(0.2, 0.8, 1.6), 3
    )
    kept = sparse(exact, [50] * 8, 50)
    expected = sparse_distillation_loss(
        hidden, head, labels, kept, VocabularyWeights(0.2, 0.8, 1.6), 3
    )
    torch.testing.assert_close(found.weighted, expected.weighted)
    assert found.num_agreeing.item() == expected.num_agreeing.item() < 8


def test_a_student_equal_to_its_teacher_has_zero_kl_and_gradient() -> None:
    hidden, head, labels, _ = make_problem(7, 30, 50)
    leaf = hidden.clone().requires_grad_()
    teacher = DenseTargets(hidden, head)
    sums = dense_distillation_loss(leaf, head, labels, teacher, VocabularyWeights(0.0, 1.0, 1.6), 8)
    (gradient,) = torch.autograd.grad(sums.weighted, leaf)
    assert abs(sums.kl.item()) < 3e-5
    assert gradient.abs().max() < 1e-6
    with torch.no_grad():
        counted = dense_distillation_loss(
            leaf, head, labels, teacher, VocabularyWeights(0.0, 1.0, 1.6), 8
        )
    assert counted.num_agreeing.item() == 30


@pytest.mark.parametrize(("dtype", "bound"), [(torch.bfloat16, 3e-2), (torch.float16, 4e-3)])
def test_half_precision_heads_change_the_loss_only_by_rounding(
    dtype: torch.dtype, bound: float
) -> None:
    hidden, head, labels, _ = make_problem(8, 12, 60)
    teacher = make_teacher(8, 12, 60)
    rounded, teacher_head = head.to(dtype), teacher.head_VD.to(dtype)
    # As small as 1/positions: fp16 would lose it unscaled.
    weighting = VocabularyWeights(1e-6, 1e-6, 2.0)
    gradients: list[torch.Tensor] = []
    for heads in ((rounded, teacher_head), (rounded.float(), teacher_head.float())):
        leaf = hidden.clone().requires_grad_()
        targets = DenseTargets(teacher.hidden_ND, heads[1])
        sums = dense_distillation_loss(leaf, heads[0], labels, targets, weighting, 5)
        gradients += torch.autograd.grad(sums.weighted, leaf)
    assert (gradients[0] - gradients[1]).norm() / gradients[1].norm() < bound


def test_frobenius_is_the_root_of_the_mean_square_over_scored_positions() -> None:
    generator = torch.Generator().manual_seed(3)
    student, teacher = torch.randn(2, 3, 5, 16, generator=generator)
    is_scored = torch.rand(3, 5, generator=generator) < 0.6
    expected = (student - teacher)[is_scored].norm() / math.sqrt(16 * int(is_scored.sum()))
    assert frobenius(student, teacher, is_scored).item() == pytest.approx(expected.item(), rel=1e-6)
