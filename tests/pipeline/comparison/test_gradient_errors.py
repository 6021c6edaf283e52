"""Bias and noise against their formulas, and the gradient against that of dense float64 math."""

import pytest
import torch

from pipeline.comparison.gradient_errors import Student, gradient_errors
from stages.train_student.data.targets.dense_targets import DenseTargets
from stages.train_student.data.targets.sparse_targets import SparseTargets


def test_a_single_gradient_has_a_bias_and_no_noise() -> None:
    true = torch.tensor([[3.0, 4.0]], dtype=torch.float64)
    found = gradient_errors([true + torch.tensor([[0.5, 0.0]])], true)
    assert found.bias == pytest.approx(0.1)
    assert found.noise == 0.0


def test_what_draws_alone_add_to_the_bias_is_taken_off() -> None:
    generator = torch.Generator().manual_seed(0)
    true = torch.randn(64, 32, generator=generator, dtype=torch.float64)
    errors = torch.randn(8, 64, 32, generator=generator, dtype=torch.float64)
    unbiased = gradient_errors(list(true + 0.5 * errors), true)
    biased = gradient_errors(list(1.25 * true + 0.5 * errors), true)
    assert unbiased.noise == biased.noise == pytest.approx(0.5, rel=0.05)
    assert unbiased.bias < 0.05 < 0.5 / 8**0.5  # the deviation of the mean of 8
    assert biased.bias == pytest.approx(0.25, rel=0.1)


def test_gradients_are_those_of_the_full_distribution() -> None:
    generator = torch.Generator().manual_seed(1)
    teacher_ND, student_ND = torch.randn(2, 5, 8, generator=generator)
    head_VD = torch.randn(30, 8, generator=generator)
    student = Student(student_ND, head_VD, torch.zeros(5, dtype=torch.int64))
    leaf_ND = student_ND.double().requires_grad_()
    log_q_NV = (leaf_ND @ head_VD.double().T / 1.5).log_softmax(1)
    log_p_NV = (teacher_ND.double() @ head_VD.double().T / 1.5).log_softmax(1)
    kl = (log_p_NV.exp() * (log_p_NV - log_q_NV)).sum()
    (expected_ND,) = torch.autograd.grad(kl, leaf_ND)

    found, gradient_ND = student.kl_gradient(DenseTargets(teacher_ND, head_VD), 1.5)
    assert found == pytest.approx(kl.item() / 5, rel=1e-5)
    torch.testing.assert_close(gradient_ND, expected_ND, rtol=1e-4, atol=1e-5)

    logits_NV = teacher_ND @ head_VD.T
    values_NV, ids_NV = logits_NV.sort(descending=True)  # all ids kept: nothing is left to a tail
    kept = SparseTargets(
        ids_NV, values_NV[:, :1] - values_NV, torch.full((5, 2), -torch.inf), (0.5, 1.0)
    )
    found, gradient_ND = student.kl_gradient(kept, 1.5)
    assert found == pytest.approx(kl.item() / 5, rel=1e-5)
    torch.testing.assert_close(gradient_ND, expected_ND, rtol=1e-4, atol=1e-5)
