"""The chunked loss against the dense float64 formula over K+1 outcomes, compiled and not."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from stages.train_student.data.targets.sparse_targets import SparseSamples, SparseTargets
from stages.train_student.losses.sparse_kl import (
    SparseDistillationLoss,
    sparse_distillation_loss,
)
from stages.train_student.losses.vocabulary_pass import VocabularyWeights
from tests.support.dense_teachers import make_problem, sparse, with_draws
from tests.support.loss_gradients import MODES, gradients_of, loss_of


def dense(
    hidden: torch.Tensor,
    head: torch.Tensor,
    labels: torch.Tensor,
    teacher: torch.Tensor,
    num_kept: list[int],
    temperature: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    """ΣCE and ΣKL over K+1 outcomes in float64, differentiable by ``hidden``."""
    logits = hidden.double() @ head.double().T
    cross_entropy = torch.nn.functional.cross_entropy(logits, labels, reduction="sum")
    kl = logits.new_zeros(())
    p, q = (x.div(temperature).softmax(1) for x in (teacher, logits))
    for n, kept in enumerate(num_kept):
        order = teacher[n].argsort(descending=True)
        groups = [order[i : i + 1] for i in range(kept)] + [order[kept:]]
        for group in groups:
            if len(group):
                p_n, q_n = p[n, group].sum(), q[n, group].sum()
                kl = kl + p_n * (p_n.log() - q_n.log())
    return cross_entropy, kl


def dense_within_tail(
    hidden: torch.Tensor,
    head: torch.Tensor,
    teacher: torch.Tensor,
    targets: SparseTargets,
    num_draws: int,
    temperature: float,
) -> torch.Tensor:
    """The draws' estimate of Σ p_tail·KL within the tail, in float64, differentiable."""
    assert targets.samples is not None
    drawn_at = 1 / targets.samples.inverse_temperature
    logits = hidden.double() @ head.double().T
    total = logits.new_zeros(())
    for n, student in enumerate(logits):
        is_tail = torch.ones(len(student), dtype=torch.bool)
        is_tail[targets.kept_ids_NK[n]] = False
        p = (teacher[n] / temperature).softmax(0)
        log_p_within = p.log() - p[is_tail].sum().log()
        log_q_within = student / temperature - (student[is_tail] / temperature).logsumexp(0)
        drawn_from = (teacher[n] / drawn_at).exp() / (teacher[n][is_tail] / drawn_at).exp().sum()
        for token_id, count in zip(
            targets.samples.ids_NJ[n].tolist(), targets.samples.counts_NJ[n].tolist(), strict=True
        ):
            if count:
                weight = count / num_draws * p[token_id] / drawn_from[token_id]
                total = total + weight * (log_p_within - log_q_within)[token_id]
    return total


@pytest.mark.parametrize("mode", MODES)
@settings(max_examples=40)
@given(
    seed=st.integers(0, 10_000),
    num_positions=st.integers(1, 9),
    vocab=st.integers(4, 70),
    data=st.data(),
    temperature=st.sampled_from([1.0, 1.0 / 0.625, 2.0]),
    weighting=st.sampled_from([(1.0, 0.0), (0.0, 1.0), (0.3, 1.7)]),
    chunk=st.integers(1, 10),
)
def test_values_and_gradients_equal_the_dense_formula(
    mode: str,
    seed: int,
    num_positions: int,
    vocab: int,
    data: st.DataObject,
    temperature: float,
    weighting: tuple[float, float],
    chunk: int,
) -> None:
    top_k = data.draw(st.integers(1, vocab))
    num_kept = data.draw(
        st.lists(st.integers(1, top_k), min_size=num_positions, max_size=num_positions)
    )
    hidden, head, labels, teacher = make_problem(seed, num_positions, vocab)
    targets = sparse(teacher, num_kept, top_k)
    weighting_at_T = VocabularyWeights(*weighting, temperature)
    assert_equals_dense(
        hidden, head, labels, teacher, num_kept, targets, weighting_at_T, chunk, loss_of(mode)
    )


@pytest.mark.parametrize("mode", MODES)
@settings(max_examples=40)
@given(
    seed=st.integers(0, 10_000),
    num_positions=st.integers(1, 9),
    vocab=st.integers(4, 70),
    num_draws=st.integers(1, 30),
    data=st.data(),
    temperature=st.sampled_from([1.0, 1.0 / 0.625, 2.0]),
    drawn_at=st.sampled_from([1.0, 4 / 3, 2.0]),
    weighting=st.sampled_from([(0.0, 1.0), (0.3, 1.7)]),
    chunk=st.integers(1, 10),
)
def test_tail_samples_add_the_last_term_of_the_dense_formula(
    mode: str,
    seed: int,
    num_positions: int,
    vocab: int,
    num_draws: int,
    data: st.DataObject,
    temperature: float,
    drawn_at: float,
    weighting: tuple[float, float],
    chunk: int,
) -> None:
    top_k = data.draw(st.integers(1, vocab))
    num_kept = data.draw(
        st.lists(st.integers(1, top_k), min_size=num_positions, max_size=num_positions)
    )
    hidden, head, labels, teacher = make_problem(seed, num_positions, vocab)
    generator = torch.Generator().manual_seed(seed)
    targets = with_draws(sparse(teacher, num_kept, top_k), teacher, num_draws, drawn_at, generator)
    exact = [tensor.double().requires_grad_() for tensor in (hidden, head)]
    cross_entropy, kl = dense(exact[0], exact[1], labels, teacher, num_kept, temperature)
    within = dense_within_tail(exact[0], exact[1], teacher, targets, num_draws, temperature)
    objective = weighting[0] * cross_entropy + weighting[1] * (kl + within)
    expected = torch.autograd.grad(objective, exact)
    sums, *found = gradients_of(
        loss_of(mode),
        hidden,
        head,
        labels,
        targets,
        VocabularyWeights(*weighting, temperature),
        chunk,
    )
    # An importance weight may be large, and what it multiplies has float32's rounding.
    scale = 1 + float(targets.sample_shares(temperature)[0].max())
    assert sums.kl.item() == pytest.approx((kl + within).item(), rel=1e-5, abs=2e-5 * scale)
    for gradient, exactly in zip(found, expected, strict=True):
        torch.testing.assert_close(gradient, exactly.float(), atol=2e-5 * scale, rtol=2e-5)


@pytest.mark.parametrize("temperature", [1.0, 1.37, 2.0])
def test_with_top_k_equal_to_the_vocabulary_the_loss_is_full_distillation(
    temperature: float,
) -> None:
    hidden, head, labels, teacher = make_problem(3, 6, 40)
    targets, weighting = sparse(teacher, [40] * 6, 40), VocabularyWeights(0.2, 0.8, temperature)
    assert_equals_dense(
        hidden, head, labels, teacher, [40] * 6, targets, weighting, 4, loss_of("off")
    )
    full = torch.nn.functional.kl_div(
        (hidden.double() @ head.double().T / temperature).log_softmax(1),
        (teacher / temperature).log_softmax(1),
        reduction="sum",
        log_target=True,
    )
    sums = sparse_distillation_loss(
        hidden,
        head,
        labels,
        sparse(teacher, [40] * 6, 40),
        VocabularyWeights(0.0, 1.0, temperature),
        4,
    )
    assert sums.kl.item() == pytest.approx(full.item(), rel=1e-5)


def test_an_exact_tail_between_nodes_gives_the_dense_formula() -> None:
    temperature = 1.37
    hidden, head, labels, teacher = make_problem(5, 7, 60)
    targets = sparse(teacher, [8] * 7, 8)
    rest = (teacher - teacher.amax(1, keepdim=True)).scatter(1, targets.kept_ids_NK, -math.inf)
    exact = (rest / temperature).logsumexp(1).float()[:, None]
    # One node at 1/T: interpolation has nothing to add, so the bound of 1e-5 applies.
    at_node = SparseTargets(targets.kept_ids_NK, targets.gaps_NK, exact, (1 / temperature,))
    assert_equals_dense(
        *(hidden, head, labels, teacher, [8] * 7, at_node),
        *(VocabularyWeights(0.3, 0.7, temperature), 3, loss_of("off")),
    )


def test_kl_is_zero_for_a_student_equal_to_its_teacher_and_never_negative() -> None:
    hidden, head, labels, _ = make_problem(7, 30, 50)
    teacher = hidden.double() @ head.double().T
    sums = sparse_distillation_loss(
        hidden, head, labels, sparse(teacher, [5] * 30, 5), VocabularyWeights(0.0, 1.0, 1.6), 8
    )
    assert -1e-12 < sums.kl.item() < 1e-5
    assert sums.num_agreeing.item() == 30


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_without_any_weight_the_gradient_is_zero(dtype: torch.dtype) -> None:
    """β = 1 leaves nothing to either term; what memory held before must not become a gradient."""
    hidden, head, labels, teacher = make_problem(9, 6, 30)
    poison = torch.full_like(hidden, math.nan)
    del poison
    targets = sparse(teacher, [4] * 6, 4)
    _, *gradients = gradients_of(
        loss_of("off", dtype), hidden, head, labels, targets, VocabularyWeights(0.0, 0.0, 1.0), 4
    )
    assert all((gradient == 0).all() for gradient in gradients)


@pytest.mark.parametrize("num_draws", [None, 20])
def test_half_precision_heads_change_the_loss_only_by_rounding(num_draws: int | None) -> None:
    hidden, head, labels, teacher = make_problem(8, 12, 60)
    targets = sparse(teacher, [8] * 12, 8)
    if num_draws is not None:
        targets = with_draws(targets, teacher, num_draws, 1.0, torch.Generator().manual_seed(0))
    for dtype, bound in ((torch.bfloat16, 3e-2), (torch.float16, 4e-3)):
        rounded = head.to(dtype)
        leaf = hidden.clone().requires_grad_()
        sums = sparse_distillation_loss(
            leaf, rounded, labels, targets, VocabularyWeights(0.5, 0.5, 2.0), 5
        )
        (gradient,) = torch.autograd.grad(sums.weighted, leaf)
        reference = hidden.clone().requires_grad_()
        expected = sparse_distillation_loss(
            reference, rounded.float(), labels, targets, VocabularyWeights(0.5, 0.5, 2.0), 5
        )
        (exact,) = torch.autograd.grad(expected.weighted, reference)
        assert sums.weighted.item() == pytest.approx(expected.weighted.item(), rel=bound)
        error = (gradient - exact).norm() / exact.norm()
        assert error < bound


def test_an_estimate_of_several_hundred_percent_does_not_overflow_in_half_precision() -> None:
    """One draw of an id that a hot distribution makes rare counts for dozens of the teacher's p."""
    vocab, width = 20_000, 8
    generator = torch.Generator().manual_seed(0)
    teacher = torch.zeros(1, vocab, dtype=torch.float64)
    teacher[0, :2] = torch.tensor([10.8, 10.3])
    rest = teacher.clone().index_fill(1, torch.tensor([0]), -math.inf)
    tail = torch.stack([((rest - 10.8) * s).logsumexp(1) for s in (0.5, 1.0)], 1)
    targets = SparseTargets(
        torch.tensor([[0]]),
        torch.zeros(1, 1),
        tail.float(),
        (0.5, 1.0),
        SparseSamples(torch.tensor([[1]]), torch.tensor([[1]]), torch.tensor([[0.5]]), 0.5),
    )
    head = torch.randn(vocab, width, generator=generator).half()
    gradients: list[torch.Tensor] = []
    for head_VD in (head, head.float()):
        leaf = torch.full((1, width), 0.25, requires_grad=True)
        label = torch.tensor([0])
        sums = sparse_distillation_loss(
            leaf, head_VD, label, targets, VocabularyWeights(0.5, 0.5, 1.0), 1
        )
        gradients += torch.autograd.grad(sums.weighted, leaf)
    assert gradients[1].norm() > 10  # or nothing was there to overflow
    torch.testing.assert_close(gradients[0], gradients[1], rtol=5e-3, atol=5e-2)


def assert_equals_dense(
    hidden: torch.Tensor,
    head: torch.Tensor,
    labels: torch.Tensor,
    teacher: torch.Tensor,
    num_kept: list[int],
    targets: SparseTargets,
    weighting: VocabularyWeights,
    chunk: int,
    loss: SparseDistillationLoss,
) -> None:
    exact = [tensor.double().requires_grad_() for tensor in (hidden, head)]
    ce_weight, kl_weight, temperature = weighting
    cross_entropy, kl = dense(exact[0], exact[1], labels, teacher, num_kept, temperature)
    expected = torch.autograd.grad(ce_weight * cross_entropy + kl_weight * kl, exact)
    sums, *found = gradients_of(loss, hidden, head, labels, targets, weighting, chunk)
    count = len(labels)
    assert sums.cross_entropy.item() / count == pytest.approx(
        cross_entropy.item() / count, abs=1e-5
    )
    if kl_weight:
        assert sums.kl.item() / count == pytest.approx(kl.item() / count, abs=1e-5)
        assert sums.kl.item() >= -1e-12
    for gradient, exactly in zip(found, expected, strict=True):
        torch.testing.assert_close(gradient, exactly.float(), atol=1e-5, rtol=1e-5)
