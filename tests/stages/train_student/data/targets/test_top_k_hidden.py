"""Kept logits beside a coarse state: exact where they are kept, and in the mass of the others."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from stages.train_student.data.targets.dense_targets import DenseTargets
from stages.train_student.losses.dense_kl import DenseDistillationLoss
from stages.train_student.losses.vocabulary_pass import VocabularyWeights
from tests.support.dense_teachers import make_problem, sparse

V, K = 50, 6


def composed(
    seed: int, num_kept: list[int], vocab: int = V
) -> tuple[DenseTargets, torch.Tensor, torch.Tensor]:
    """Targets, the teacher's true logits, and those of the coarse state."""
    states, head, _, teacher = make_problem(seed, len(num_kept), vocab)
    return DenseTargets(states, head, sparse(teacher, num_kept, K)), teacher, states @ head.T


@settings(max_examples=40)
@given(
    seed=st.integers(0, 1000),
    num_kept=st.lists(st.integers(1, K), min_size=1, max_size=5),
    temperature=st.sampled_from([1.0, 8 / 7, 4 / 3, 2.0]),
)
def test_kept_ids_and_the_mass_of_the_rest_are_exact(
    seed: int, num_kept: list[int], temperature: float
) -> None:
    """At the nodes of 1/T; between them the rest's mass is interpolated."""
    targets, teacher, coarse = composed(seed, num_kept)
    found = (targets.logits(slice(0, None), temperature).double() / temperature).softmax(1)
    exact = (teacher / temperature).softmax(1)
    for position, kept in enumerate(num_kept):
        order = exact[position].argsort(descending=True)
        ids, others = order[:kept], order[kept:]
        torch.testing.assert_close(found[position, ids], exact[position, ids], rtol=1e-4, atol=1e-7)
        shape = (coarse[position, others].double() / temperature).softmax(0)
        mass = exact[position, others].sum()
        torch.testing.assert_close(found[position, others], shape * mass, rtol=1e-4, atol=1e-7)


def test_a_position_that_keeps_all_ids_has_no_others() -> None:
    targets, teacher, _ = composed(3, [K, 2], vocab=K)
    found = targets.logits(slice(0, 2), 1.0)
    assert torch.isfinite(found).all()
    torch.testing.assert_close(
        found[0].double().softmax(0), teacher[0].softmax(0), rtol=1e-5, atol=0
    )


@pytest.mark.parametrize("temperature", [1.0, 1.6])
def test_kl_and_gradient_are_those_of_float64(temperature: float) -> None:
    targets, _, _ = composed(5, [6, 1, 3, 6, 2])
    student, head, labels, _ = make_problem(6, 5, V)
    student.requires_grad_()
    loss = DenseDistillationLoss(
        chunk=2, dtype=torch.float32, compile="off", device=torch.device("cpu")
    )
    weights = VocabularyWeights(cross_entropy=0.0, kl=1.0, temperature=temperature)
    sums = loss(student, head, labels, targets, weights)
    (gradient,) = torch.autograd.grad(sums.weighted, student)

    exact = student.detach().double().requires_grad_()
    log_q = torch.log_softmax(exact @ head.double().T / temperature, 1)
    teacher = targets.logits(slice(0, 5), temperature).double() / temperature
    log_p = torch.log_softmax(teacher, 1)
    kl = (log_p.exp() * (log_p - log_q)).sum()
    torch.testing.assert_close(sums.kl, kl.detach(), rtol=1e-5, atol=1e-5)
    (expected,) = torch.autograd.grad(kl, exact)
    torch.testing.assert_close(gradient.double(), expected, rtol=1e-4, atol=1e-5)


def test_label_log_probabilities_and_first_choices_are_those_of_the_composition() -> None:
    targets, _, _ = composed(8, [6, 2, 4])
    log_p = torch.log_softmax(targets.logits(slice(0, 3), 1.0).double(), 1)
    labels = torch.tensor([0, 17, 49])
    found = targets.label_logprobs(labels, chunk=2)
    torch.testing.assert_close(found, log_p.gather(1, labels[:, None])[:, 0], rtol=1e-5, atol=1e-6)
    confidence, ids = targets.first_choices(chunk=2)
    assert torch.equal(ids, log_p.argmax(1))
    torch.testing.assert_close(confidence.double(), log_p.exp().amax(1), rtol=1e-5, atol=1e-6)
