"""The Frobenius term from sketches: unbiased of random signs, too low of principal components."""

import math

import pytest
import torch

from stages.train_student.losses.states.frobenius import frobenius, sketched_frobenius


def test_frobenius_from_sketches_is_unbiased_over_scored_positions() -> None:
    generator = torch.Generator().manual_seed(0)
    width, dim, trials = 32, 8, 400
    student, teacher = torch.randn(2, 1, 5, width, generator=generator)
    is_scored = torch.tensor([[True, True, False, True, True]])
    exact = (student - teacher)[is_scored].square().mean()
    estimates, scale = [], 1 / math.sqrt(dim)
    for _ in range(trials):
        signs = torch.randint(2, (1, width, dim), generator=generator) * 2 - 1
        sketch = teacher @ signs.float() * scale
        estimates.append(sketched_frobenius(student, sketch, signs, scale, is_scored).square())
    mean, spread = torch.stack(estimates).mean(), torch.stack(estimates).std()
    assert abs(mean - exact) < 4 * spread / math.sqrt(trials)


def test_frobenius_of_a_perfect_student_is_zero_and_has_a_gradient() -> None:
    student = torch.randn(2, 3, 16, generator=torch.Generator().manual_seed(1)).requires_grad_()
    signs = torch.ones(2, 16, 8)
    sketch = student.detach() @ signs * 8**-0.5
    loss = sketched_frobenius(student, sketch, signs, 8**-0.5, torch.ones(2, 3, dtype=torch.bool))
    (gradient,) = torch.autograd.grad(loss, student)
    assert loss < 1e-6
    assert gradient.isfinite().all()


def test_without_a_scored_position_frobenius_and_its_gradient_are_zero() -> None:
    student = torch.randn(2, 3, 16, generator=torch.Generator().manual_seed(4)).requires_grad_()
    none = torch.zeros(2, 3, dtype=torch.bool)
    sketches = torch.ones(2, 3, 8), torch.ones(1, 16, 8)
    for loss in (
        sketched_frobenius(student, *sketches, 1.0, none),
        frobenius(student, torch.ones(2, 3, 16), none),
    ):
        (gradient,) = torch.autograd.grad(loss, student)
        assert loss < 1e-9
        assert not gradient.any()


@pytest.mark.parametrize("dim", [3, 12])
def test_with_orthonormal_columns_frobenius_is_that_of_the_projected_difference(dim: int) -> None:
    generator = torch.Generator().manual_seed(2)
    student, teacher = torch.randn(2, 4, 5, 12, generator=generator)
    columns, _ = torch.linalg.qr(torch.randn(12, 12, generator=generator))
    projection = columns[:, :dim]
    is_scored = torch.rand(4, 5, generator=generator) < 0.7
    found = sketched_frobenius(student, teacher @ projection, projection[None], 1.0, is_scored)
    difference = (student - teacher)[is_scored]
    within = difference @ projection @ projection.T
    assert found.item() == pytest.approx(within.square().mean().sqrt().item(), rel=1e-5)
    whole = difference.square().mean().sqrt().item()
    if dim == 12:
        assert found.item() == pytest.approx(whole, rel=1e-5)
    else:
        assert found.item() < 0.9 * whole
