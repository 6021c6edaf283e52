"""The chunked loss against the dense float64 formula over K+1 outcomes."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from stages.train_student.loss import (
    SparseTargets,
    lagrange_weights,
    sketched_frobenius,
    sparse_distillation_loss,
)

NODES = (0.5, 0.625, 0.75, 0.875, 1.0)


def make_problem(
    seed: int, num_positions: int, vocab: int, top_k: int, width: int = 16
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Student hidden states, head, labels and full teacher logits (float64)."""
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randn(num_positions, width, generator=generator)
    head = torch.randn(vocab, width, generator=generator) * 0.7
    labels = torch.randint(vocab, (num_positions,), generator=generator)
    teacher = torch.randn(num_positions, vocab, generator=generator, dtype=torch.float64) * 2.5
    return hidden, head, labels, teacher


def sparse(teacher: torch.Tensor, num_kept: list[int], top_k: int) -> SparseTargets:
    """Exact sparse targets of full teacher logits, the n-th position keeping ``num_kept[n]``."""
    ids, gaps, tails = [], [], []
    for logits, kept in zip(teacher, num_kept, strict=True):
        order = logits.argsort(descending=True)[:kept]
        relative = logits - logits.max()
        rest = relative.clone()
        rest[order] = -math.inf
        padding = top_k - kept
        ids.append(torch.cat((order, order[:1].expand(padding))))
        gaps.append(torch.cat((-relative[order], torch.full((padding,), math.inf))))
        tails.append(torch.stack([(rest * s).logsumexp(0) for s in NODES]))
    return SparseTargets(
        torch.stack(ids), torch.stack(gaps).float(), torch.stack(tails).float(), NODES
    )


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
    hidden, head, labels, teacher = make_problem(seed, num_positions, vocab, top_k)
    assert_equals_dense(
        hidden, head, labels, teacher, num_kept, top_k, temperature, weighting, chunk
    )


@pytest.mark.parametrize("temperature", [1.0, 1.37, 2.0])
def test_at_k_equal_to_the_vocabulary_it_is_full_distillation(temperature: float) -> None:
    hidden, head, labels, teacher = make_problem(3, 6, 40, 40)
    assert_equals_dense(hidden, head, labels, teacher, [40] * 6, 40, temperature, (0.2, 0.8), 4)
    full = torch.nn.functional.kl_div(
        (hidden.double() @ head.double().T / temperature).log_softmax(1),
        (teacher / temperature).log_softmax(1),
        reduction="sum",
        log_target=True,
    )
    sums = sparse_distillation_loss(
        hidden, head, labels, sparse(teacher, [40] * 6, 40), (0.0, 1.0, temperature), 4
    )
    assert sums.kl.item() == pytest.approx(full.item(), rel=1e-5)


def test_between_the_nodes_an_exact_tail_gives_the_dense_formula() -> None:
    temperature = 1.37
    hidden, head, labels, teacher = make_problem(5, 7, 60, 8)
    targets = sparse(teacher, [8] * 7, 8)
    rest = (teacher - teacher.amax(1, keepdim=True)).scatter(1, targets.kept_ids_NK, -math.inf)
    exact = (rest / temperature).logsumexp(1).float()[:, None]
    # One node at 1/T: interpolation has nothing to add, so the bound of 1e-5 applies.
    at_node = SparseTargets(targets.kept_ids_NK, targets.gaps_NK, exact, (1 / temperature,))
    assert_sums_equal_dense(
        hidden, head, labels, teacher, [8] * 7, at_node, temperature, (0.3, 0.7), 3
    )


def test_interpolating_the_tail_costs_less_than_two_thousandths_of_a_nat() -> None:
    *_, teacher = make_problem(6, 50, 2000, 16)
    targets = sparse(teacher, [16] * 50, 16)
    rest = (teacher - teacher.amax(1, keepdim=True)).scatter(1, targets.kept_ids_NK, -math.inf)
    for temperature in (1.05, 1.37, 1.7, 1.93):
        exact = (rest / temperature).logsumexp(1).float()
        weights = torch.tensor(lagrange_weights(NODES, 1 / temperature))
        torch.testing.assert_close(targets.tail_log_mass_NM @ weights, exact, atol=2e-3, rtol=0)


def test_a_temperature_outside_of_the_nodes_is_refused() -> None:
    with pytest.raises(ValueError, match=r"temperature 2\.5 lies outside"):
        lagrange_weights(NODES, 1 / 2.5)


def test_kl_is_zero_for_a_student_equal_to_its_teacher_and_never_negative() -> None:
    hidden, head, labels, _ = make_problem(7, 30, 50, 5)
    teacher = hidden.double() @ head.double().T
    sums = sparse_distillation_loss(
        hidden, head, labels, sparse(teacher, [5] * 30, 5), (0.0, 1.0, 1.6), 8
    )
    assert abs(sums.kl.item()) < 1e-5
    assert sums.num_agreeing.item() == 30


def test_without_any_weight_the_gradient_is_zero() -> None:
    """β = 1 leaves nothing to either term; what memory held before must not become a gradient."""
    hidden, head, labels, teacher = make_problem(9, 6, 30, 4)
    poison = torch.full_like(hidden, math.nan)
    del poison
    leaf = hidden.clone().requires_grad_()
    sums = sparse_distillation_loss(
        leaf, head, labels, sparse(teacher, [4] * 6, 4), (0.0, 0.0, 1.0), 4
    )
    (gradient,) = torch.autograd.grad(sums.weighted, leaf)
    assert torch.equal(gradient, torch.zeros_like(hidden))


def test_half_precision_heads_stay_within_their_rounding() -> None:
    hidden, head, labels, teacher = make_problem(8, 12, 60, 8)
    targets = sparse(teacher, [8] * 12, 8)
    for dtype, bound in ((torch.bfloat16, 3e-2), (torch.float16, 4e-3)):
        rounded = head.to(dtype)
        leaf = hidden.clone().requires_grad_()
        sums = sparse_distillation_loss(leaf, rounded, labels, targets, (0.5, 0.5, 2.0), 5)
        (gradient,) = torch.autograd.grad(sums.weighted, leaf)
        reference = hidden.clone().requires_grad_()
        expected = sparse_distillation_loss(
            reference, rounded.float(), labels, targets, (0.5, 0.5, 2.0), 5
        )
        (exact,) = torch.autograd.grad(expected.weighted, reference)
        assert sums.weighted.item() == pytest.approx(expected.weighted.item(), rel=bound)
        error = (gradient - exact).norm() / exact.norm()
        assert error < bound


def test_frobenius_from_sketches_is_unbiased_over_scored_positions() -> None:
    generator = torch.Generator().manual_seed(0)
    width, dim, trials = 32, 8, 400
    student, teacher = torch.randn(2, 1, 5, width, generator=generator)
    is_scored = torch.tensor([[True, True, False, True, True]])
    exact = (student - teacher)[is_scored].square().mean()
    estimates = []
    for _ in range(trials):
        signs = torch.randint(2, (1, width, dim), generator=generator) * 2 - 1
        sketch = teacher @ signs.float() / math.sqrt(dim)
        estimates.append(sketched_frobenius(student, sketch, signs, is_scored).square())
    mean, spread = torch.stack(estimates).mean(), torch.stack(estimates).std()
    assert abs(mean - exact) < 4 * spread / math.sqrt(trials)


def test_frobenius_of_a_perfect_student_is_zero_and_has_a_gradient() -> None:
    student = torch.randn(2, 3, 16, generator=torch.Generator().manual_seed(1)).requires_grad_()
    signs = torch.ones(2, 16, 8)
    sketch = student.detach() @ signs / math.sqrt(8)
    loss = sketched_frobenius(student, sketch, signs, torch.ones(2, 3, dtype=torch.bool))
    (gradient,) = torch.autograd.grad(loss, student)
    assert loss < 1e-6
    assert gradient.isfinite().all()


def assert_equals_dense(
    hidden: torch.Tensor,
    head: torch.Tensor,
    labels: torch.Tensor,
    teacher: torch.Tensor,
    num_kept: list[int],
    top_k: int,
    temperature: float,
    weighting: tuple[float, float],
    chunk: int,
) -> None:
    targets = sparse(teacher, num_kept, top_k)
    assert_sums_equal_dense(
        hidden, head, labels, teacher, num_kept, targets, temperature, weighting, chunk
    )


def assert_sums_equal_dense(
    hidden: torch.Tensor,
    head: torch.Tensor,
    labels: torch.Tensor,
    teacher: torch.Tensor,
    num_kept: list[int],
    targets: SparseTargets,
    temperature: float,
    weighting: tuple[float, float],
    chunk: int,
) -> None:
    leaf = hidden.clone().requires_grad_()
    exact = hidden.double().requires_grad_()
    cross_entropy, kl = dense(exact, head, labels, teacher, num_kept, temperature)
    (by_exact,) = torch.autograd.grad(weighting[0] * cross_entropy + weighting[1] * kl, exact)
    sums = sparse_distillation_loss(leaf, head, labels, targets, (*weighting, temperature), chunk)
    (by_leaf,) = torch.autograd.grad(sums.weighted, leaf)
    count = len(labels)
    assert sums.cross_entropy.item() / count == pytest.approx(
        cross_entropy.item() / count, abs=1e-5
    )
    if weighting[1]:
        assert sums.kl.item() / count == pytest.approx(kl.item() / count, abs=1e-5)
        assert sums.kl.item() >= -1e-6
    torch.testing.assert_close(by_leaf, by_exact.float(), atol=1e-5, rtol=1e-5)
