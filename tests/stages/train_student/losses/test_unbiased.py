"""What each kind of target teaches, over many draws, against the KL of the full distributions.

The head is the identity, so that hidden states are logits and gradients are those by the logits.
Draws come from PyTorch, thousands of them for one teacher and student, seeded.
"""

import math
from dataclasses import dataclass

import pytest
import torch

from stages.train_student.data.targets.sparse_targets import SparseTargets
from stages.train_student.losses.sparse_kl import sparse_distillation_loss
from stages.train_student.losses.vocabulary_pass import VocabularyWeights
from tests.support.dense_teachers import samples, sparse, with_draws

_TRIALS = 6000
_GROUPS = 60  # a value is known for a group of trials
_STANDARD_ERRORS = 4.5  # of a hundred comparisons, none is to fail by chance
_TOP_K = 6
_DRAWS = 8
_AT = [(t, drawn_at) for drawn_at in (1.0, 4 / 3, 2.0) for t in (1.0, 1.6, 2.0)]


@dataclass(frozen=True)
class Problem:
    """Logits of teacher and student at one position, float64 [1, V]."""

    teacher: torch.Tensor
    student: torch.Tensor

    def distributions(self, temperature: float) -> tuple[torch.Tensor, torch.Tensor]:
        """p and q, [V]."""
        teacher, student = self.teacher[0], self.student[0]
        return (teacher / temperature).softmax(0), (student / temperature).softmax(0)

    def kl(self, temperature: float) -> float:
        """KL(p ‖ q) over all ids."""
        p, q = self.distributions(temperature)
        return float((p * (p / q).log()).sum())

    def gradient(self, temperature: float) -> torch.Tensor:
        """Its gradient by the student's logits, [V]."""
        p, q = self.distributions(temperature)
        return (q - p) / temperature

    def repeated(self) -> torch.Tensor:
        """The teacher's logits once for each trial."""
        return self.teacher.expand(_TRIALS, -1)

    def top_k(self) -> SparseTargets:
        """Targets of the largest logits, once for each trial."""
        return _repeated(sparse(self.teacher, [_TOP_K], _TOP_K))


def make_problem(vocab: int = 24, exponent: float = 1.3) -> Problem:
    """p_j ∝ rank^(−exponent) at T = 1, and a student that is wrong about the tail's shape, too."""
    generator = torch.Generator().manual_seed(0)
    ranks = torch.arange(1, vocab + 1, dtype=torch.float64)
    order = torch.randperm(vocab, generator=generator)
    teacher = (-exponent * ranks.log())[order][None]
    noise = torch.randn(1, vocab, generator=generator, dtype=torch.float64)
    return Problem(teacher, 0.6 * teacher + noise)


def gradients_and_values(
    problem: Problem, targets: SparseTargets, temperature: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Gradient of each trial [trials, V], and the mean value of each group of them."""
    logits = problem.student.float().expand(len(targets.kept_ids_NK), -1)
    head, labels = torch.eye(logits.shape[1]), torch.zeros(len(logits), dtype=torch.int64)
    size = len(logits) // _GROUPS
    gradients: list[torch.Tensor] = []
    values = []
    for start in range(0, len(logits), size):
        leaf = logits[start : start + size].clone().requires_grad_()
        sums = sparse_distillation_loss(
            leaf,
            head,
            labels[start : start + size],
            targets.chunk(start, start + size),
            VocabularyWeights(0.0, 1.0, temperature),
            size,
        )
        gradients += torch.autograd.grad(sums.weighted, leaf)
        values.append(sums.kl / size)
    return torch.cat(gradients).double(), torch.stack(values)


def assert_mean(estimates: torch.Tensor, exact: torch.Tensor | float) -> None:
    """The mean over dimension 0 is ``exact`` within some standard errors and float32's rounding."""
    error = (estimates.mean(0) - exact).abs()
    assert (error <= _allowed(estimates)).all(), (error / _allowed(estimates)).max()


def _allowed(estimates: torch.Tensor) -> torch.Tensor:
    return _STANDARD_ERRORS * estimates.std(0) / math.sqrt(len(estimates)) + 2e-6


@pytest.mark.parametrize(("temperature", "drawn_at"), _AT)
def test_top_k_with_tail_samples_is_unbiased_for_the_full_kl(
    temperature: float, drawn_at: float
) -> None:
    problem, generator = make_problem(), torch.Generator().manual_seed(1)
    targets = with_draws(problem.top_k(), problem.repeated(), _DRAWS, drawn_at, generator)
    gradients, values = gradients_and_values(problem, targets, temperature)
    assert_mean(gradients, problem.gradient(temperature))
    assert_mean(values, problem.kl(temperature))
    # Were it the gradient and the value of the kept ids and a tail as one, this would be seen.
    biased, low = gradients_and_values(problem, problem.top_k().chunk(0, _GROUPS), temperature)
    assert ((biased[0] - problem.gradient(temperature)).abs() > _allowed(gradients)).any()
    assert abs(low[0] - problem.kl(temperature)) > 3 * _allowed(values)


def test_tail_samples_at_the_wrong_temperature_are_detectably_biased() -> None:
    problem, generator = make_problem(), torch.Generator().manual_seed(1)
    drawn = with_draws(problem.top_k(), problem.repeated(), _DRAWS, 2.0, generator)
    assert drawn.samples is not None
    at_one = with_draws(problem.top_k(), problem.repeated(), _DRAWS, 1.0, generator)
    assert at_one.samples is not None
    mistaken = SparseTargets(
        drawn.kept_ids_NK,
        drawn.gaps_NK,
        drawn.tail_log_mass_NM,
        drawn.inverse_temperatures,
        type(drawn.samples)(
            drawn.samples.ids_NJ,
            drawn.samples.counts_NJ,
            drawn.samples.gaps_NJ,
            at_one.samples.inverse_temperature,
        ),
    )
    gradients, _ = gradients_and_values(problem, mistaken, 1.0)
    with pytest.raises(AssertionError):
        assert_mean(gradients, problem.gradient(1.0))


@pytest.mark.parametrize("drawn_at", [1.0, 4 / 3, 2.0])
def test_samples_have_an_unbiased_gradient_and_a_loss_biased_upward(drawn_at: float) -> None:
    problem, generator = make_problem(), torch.Generator().manual_seed(2)
    targets = samples(problem.repeated(), 12, drawn_at, generator)
    gradients, values = gradients_and_values(problem, targets, drawn_at)
    assert_mean(gradients, problem.gradient(drawn_at))
    shares = targets.logprobs(drawn_at)[0].double().exp()
    entropies = torch.special.entr(shares).sum(1).view(_GROUPS, -1).mean(1)
    p, _ = problem.distributions(drawn_at)
    assert_mean(values + entropies, problem.kl(drawn_at) + float(torch.special.entr(p).sum()))
    assert values.mean() > problem.kl(drawn_at) + 20 * _allowed(values)


@pytest.mark.parametrize("temperature", [1.0, 1.6, 2.0])
def test_top_k_alone_is_biased_as_documented(temperature: float) -> None:
    problem = make_problem()
    gradients, values = gradients_and_values(
        problem, problem.top_k().chunk(0, _GROUPS), temperature
    )
    p, q = problem.distributions(temperature)
    kept = problem.teacher[0].topk(_TOP_K).indices
    tail = torch.ones_like(p).index_fill(0, kept, 0.0)
    p_tail, r = (p * tail).sum(), q * tail / (q * tail).sum()
    stated = (p - p_tail * r) * tail / temperature
    torch.testing.assert_close(
        gradients[0] - problem.gradient(temperature), stated, rtol=1e-4, atol=1e-6
    )
    assert stated.norm() > 0.1 * problem.gradient(temperature).norm()
    within = torch.where(tail > 0, p * ((p / p_tail).log() - r.log()), 0.0).sum()
    assert problem.kl(temperature) - values[0].item() == pytest.approx(within.item(), rel=1e-4)


@pytest.mark.parametrize("temperature", [1.0, 1.6])
def test_for_equal_storage_keeping_the_largest_ids_has_the_least_noise(temperature: float) -> None:
    problem, generator = make_problem(vocab=60, exponent=2.0), torch.Generator().manual_seed(3)
    both = with_draws(problem.top_k(), problem.repeated(), _DRAWS, temperature, generator)
    assert both.samples is not None
    stored = _TOP_K + (both.samples.counts_NJ > 0).sum(1).double().mean()
    p, _ = problem.distributions(temperature)
    # Samples get no fewer ids: the first number of draws that gives them as many.
    num_draws = next(m for m in range(1, 500) if (1 - (1 - p) ** m).sum() >= stored)
    alone = samples(problem.repeated(), num_draws, temperature, generator)
    noise = [
        gradients_and_values(problem, targets, temperature)[0].var(0).sum()
        for targets in (both, alone)
    ]
    assert noise[0] < 0.8 * noise[1]


@pytest.mark.parametrize(("temperature", "drawn_at"), _AT)
def test_tail_gradients_do_not_depend_on_the_number_of_samples(
    temperature: float, drawn_at: float
) -> None:
    """Every trial's gradient sums to 0, so that no constant added to the logits is felt."""
    problem, generator = make_problem(), torch.Generator().manual_seed(4)
    targets = with_draws(problem.top_k(), problem.repeated(), _DRAWS, drawn_at, generator)
    gradients, _ = gradients_and_values(problem, targets.chunk(0, 300), temperature)
    assert gradients.sum(1).abs().max() < 1e-5


def _repeated(targets: SparseTargets) -> SparseTargets:
    return SparseTargets(
        targets.kept_ids_NK.expand(_TRIALS, -1),
        targets.gaps_NK.expand(_TRIALS, -1),
        targets.tail_log_mass_NM.expand(_TRIALS, -1),
        targets.inverse_temperatures,
    )
