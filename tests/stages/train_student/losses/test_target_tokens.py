"""The ids that labels and targets name: each counts once, and nothing cancels."""

import math

import torch

from stages.train_student.data.targets.sparse_targets import SparseSamples, SparseTargets
from stages.train_student.losses.sparse_kl import sparse_distillation_loss
from stages.train_student.losses.target_tokens import TargetTokens
from stages.train_student.losses.vocabulary_pass import VocabularyWeights

# Four positions, whose label is kept, drawn, neither, or both kept and the id of padding.
KEPT = torch.tensor([[3, 5], [3, 5], [3, 5], [3, 3]])
GAPS = torch.tensor([[0.0, 1.0], [0.0, 1.0], [0.0, 1.0], [0.0, math.inf]])
DRAWN = SparseSamples(
    torch.tensor([[7, 8], [7, 8], [7, 0], [7, 0]]),
    torch.tensor([[1, 2], [1, 2], [1, 0], [1, 0]]),
    torch.tensor([[2.0, 2.5], [2.0, 2.5], [2.0, 0.0], [2.0, 0.0]]),
    1.0,
)
LABELS = torch.tensor([5, 8, 0, 3])


def test_each_target_token_counts_once_and_is_removed_from_the_logits() -> None:
    targets = SparseTargets(KEPT, GAPS, torch.zeros(4, 1), (1.0,), DRAWN)
    logits = torch.arange(40.0).reshape(4, 10)
    before = logits.clone()
    named = TargetTokens.of(LABELS, targets)
    found = named.take(logits)
    for n, ids in enumerate(({3, 5, 7, 8}, {3, 5, 7, 8}, {0, 3, 5, 7}, {3, 7})):
        counted = found[n][found[n] > -math.inf]
        assert sorted(counted.tolist()) == sorted(before[n, list(ids)].tolist())
        assert (logits[n] == -math.inf).nonzero()[:, 0].tolist() == sorted(ids)
        left = [j for j in range(10) if j not in ids]
        assert torch.equal(logits[n, left], before[n, left])


def test_without_targets_the_label_is_the_only_target_token() -> None:
    logits = torch.arange(40.0).reshape(4, 10)
    found = TargetTokens.of(LABELS, None).take(logits)
    assert found[:, 0].tolist() == [5.0, 18.0, 20.0, 33.0]
    assert (logits == -math.inf).sum() == 4


def test_the_tail_of_a_confident_student_keeps_its_precision() -> None:
    """1 − q would be 0 in any precision; log q_tail is about −199 all the same."""
    vocab = 30
    logits = torch.zeros(2, vocab)
    logits[:, 4] = 200.0
    logits[1, 9] = 3.0
    targets = SparseTargets(
        torch.tensor([[4], [4]]), torch.zeros(2, 1), torch.full((2, 1), -1.0), (1.0,)
    )
    leaf, labels = logits.clone().requires_grad_(), torch.tensor([4, 9])
    sums = sparse_distillation_loss(
        leaf, torch.eye(vocab), labels, targets, VocabularyWeights(1.0, 1.0, 1.0), 2
    )
    (gradient,) = torch.autograd.grad(sums.weighted, leaf)
    exact = logits.double().requires_grad_()
    log_q = exact.log_softmax(1)
    log_q_tail = torch.cat((log_q[:, :4], log_q[:, 5:]), 1).logsumexp(1)
    p, p_tail = 1 / (1 + math.exp(-1)), 1 / (1 + math.exp(1))
    entropy = -p * math.log(p) - p_tail * math.log(p_tail)
    kl = (-entropy - p * log_q[:, 4] - p_tail * log_q_tail).sum()
    cross_entropy = -log_q[torch.arange(2), labels].sum()
    (expected,) = torch.autograd.grad(cross_entropy + kl, exact)
    torch.testing.assert_close(sums.kl, kl.detach(), rtol=1e-6, atol=0)
    torch.testing.assert_close(sums.cross_entropy, cross_entropy.detach(), rtol=1e-6, atol=1e-9)
    torch.testing.assert_close(gradient.double(), expected, rtol=1e-5, atol=1e-9)


def test_kept_ids_of_all_the_mass_leave_a_tail_of_probability_zero() -> None:
    """Mass 1 is kept though ids are left over: the tail's p is 0, and its gradient q/T."""
    logits = torch.randn(3, 12, generator=torch.Generator().manual_seed(1))
    gaps = torch.tensor([[0.0, 0.7]]).expand(3, -1)
    targets = SparseTargets(KEPT[:3], gaps, torch.full((3, 1), -math.inf), (0.5,))
    leaf, labels = logits.clone().requires_grad_(), torch.tensor([1, 3, 5])
    sums = sparse_distillation_loss(
        leaf, torch.eye(12), labels, targets, VocabularyWeights(0.0, 1.0, 2.0), 2
    )
    (gradient,) = torch.autograd.grad(sums.weighted, leaf)
    p = torch.zeros(3, 12, dtype=torch.float64)
    p[:, [3, 5]] = (-gaps / 2).double().softmax(1)
    q = (logits.double() / 2).softmax(1)
    torch.testing.assert_close(gradient.double(), (q - p) / 2, rtol=1e-5, atol=1e-7)
    kl = (torch.special.xlogy(p, p) - p * q.log()).sum()
    torch.testing.assert_close(sums.kl, kl, rtol=1e-6, atol=0)
