"""Draws follow the distribution they are said to follow, and nothing that has no mass is drawn.

C positions, V vocabulary, M draws.
"""

import numpy as np
import pytest
import torch

from cache_format.metadata.spec_parts.targets import Draws, KeptLogits, TargetSpec
from stages.cache_teacher.targets.kinds import kind_of
from stages.cache_teacher.targets.sampled import make_maker, with_counts
from stages.cache_teacher.targets.sampling import uniform_numbers
from stages.cache_teacher.targets.target_maker import IdTargets
from stages.cache_teacher.targets.teacher_head import Head
from tests.support.sample_cache import sample_shared

V, M = 300, 200
NODES = (0.5, 0.75, 1.0)


def sampled(s: float) -> TargetSpec:
    return TargetSpec(kind="sampled", draws=Draws(num_draws=M, inverse_temperature=s))


def both(s: float, *, keep_mass: float = 1.0) -> TargetSpec:
    return TargetSpec(
        kind="top_k+sampled",
        kept=KeptLogits(top_k=6, keep_mass=keep_mass, inverse_temperatures=NODES),
        draws=Draws(num_draws=M, inverse_temperature=s),
    )


class Plain(Head):
    """A head that hands its input on."""

    def __init__(self) -> None:
        self.vocab_size, self.device = V, torch.device("cpu")

    def padded_logits(self, hidden_CD: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.pad(hidden_CD, (0, -V % 64), value=-torch.inf)


def targets_of(logits_V: torch.Tensor, spec: TargetSpec, num_positions: int) -> IdTargets:
    """Targets of so many positions that all have the same logits."""
    logits_PV = logits_V.expand(num_positions, -1)
    maker = kind_of(spec).make_maker(Plain(), spec, sample_shared(), chunk=64, compile="off")
    uniform_PM = torch.from_numpy(uniform_numbers(5, 3, 0, num_positions, M))
    targets = maker.make(logits_PV, torch.zeros(num_positions, dtype=torch.long), uniform_PM)
    assert isinstance(targets, IdTargets)
    return targets


def peaked_logits(seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(V, generator=generator) * 1.5


def check_frequencies(drawn: torch.Tensor, probabilities_V: torch.Tensor) -> None:
    """Every id as often as it should be, within 5 standard deviations of a binomial count."""
    counts_V = torch.bincount(drawn.flatten().long(), minlength=V).double()
    expected_V = probabilities_V * drawn.numel()
    deviation_V = (expected_V * (1 - probabilities_V)).sqrt()
    assert bool(((counts_V - expected_V).abs() <= 5 * deviation_V + 1).all())
    statistic = ((counts_V - expected_V).square() / expected_V.clamp_min(1e-9))[expected_V > 5]
    degrees = len(statistic) - 1
    assert float(statistic.sum()) < degrees + 5 * (2 * degrees) ** 0.5  # χ²


@pytest.mark.parametrize("s", NODES)
def test_samples_follow_the_tempered_distribution(s: float) -> None:
    logits_V = peaked_logits()
    targets = targets_of(logits_V, sampled(s), 500)
    check_frequencies(targets.sample_ids_PM, torch.softmax(logits_V.double() * s, 0))


@pytest.mark.parametrize("s", NODES)
def test_tail_samples_follow_the_distribution_of_unkept_ids(s: float) -> None:
    logits_V = peaked_logits()
    targets = targets_of(logits_V, both(s), 500)
    tail_V = logits_V.double().index_fill(0, logits_V.topk(6).indices, -torch.inf)
    check_frequencies(targets.sample_ids_PM, torch.softmax(tail_V * s, 0))
    gaps_PM = logits_V.max() - logits_V[targets.sample_ids_PM.long()]
    assert torch.equal(targets.sample_logit_gaps_PM, gaps_PM)


def test_ids_dropped_by_keep_mass_are_sampled_in_the_tail() -> None:
    logits_V = peaked_logits()
    targets = targets_of(logits_V, both(1.0, keep_mass=0.3), 500)
    num_kept = int(targets.num_kept_P[0])
    assert num_kept < 6
    tail_V = logits_V.double().index_fill(0, logits_V.topk(num_kept).indices, -torch.inf)
    check_frequencies(targets.sample_ids_PM, torch.softmax(tail_V, 0))


def test_kept_ids_are_not_sampled_among_ties() -> None:
    logits_V = torch.zeros(V)
    targets = targets_of(logits_V, both(1.0), 50)
    assert targets.kept_ids_PK[0].tolist() == [0, 1, 2, 3, 4, 5]
    assert int(targets.sample_ids_PM.min()) == 6
    assert int(targets.sample_ids_PM.max()) == V - 1


def test_ids_without_mass_are_never_sampled() -> None:
    logits_V = torch.full((V,), -torch.inf)
    logits_V[[7, 70, 250]] = torch.tensor([0.0, 1.0, -80.0])
    targets = targets_of(logits_V, sampled(1.0), 100)
    assert set(targets.sample_ids_PM.flatten().tolist()) == {7, 70}


@pytest.mark.parametrize("u", [0.0, 1 - 2.0**-53])
def test_random_numbers_at_the_ends_of_the_unit_interval_are_safe(u: float) -> None:
    logits_V = torch.full((V,), -torch.inf)
    logits_V[[70, 71, 130]] = 1.0
    maker = make_maker(Plain(), sampled(1.0), sample_shared(), chunk=8, compile="off")
    uniform_PM = torch.full((2, M), u, dtype=torch.float64)
    targets = maker.make(logits_V.expand(2, -1), torch.full((2,), 70), uniform_PM)
    assert set(targets.sample_ids_PM.flatten().tolist()) == ({70} if u == 0 else {130})


def test_random_numbers_depend_on_seed_unit_and_row_alone() -> None:
    numbers = uniform_numbers(1, 2, 3, 64, 10)
    assert numbers.shape == (64, 10)
    assert numbers.min() >= 0
    assert numbers.max() < 1
    assert np.array_equal(numbers, uniform_numbers(1, 2, 3, 64, 10))
    others = [uniform_numbers(*key, 64, 10) for key in ((0, 2, 3), (1, 1, 3), (1, 2, 4))]
    assert all(not np.isin(numbers, other).any() for other in others)


def test_the_first_random_numbers_equal_the_golden_ones() -> None:
    """Frozen: a cache that is extended with other numbers would no longer be one cache."""
    assert uniform_numbers(1, 2, 3, 1, 3)[0].tolist() == FIRST


FIRST = [0.06344102965932141, 0.707504754819708, 0.27756060377104574]


def test_repeated_samples_become_counts_in_descending_order() -> None:
    found = with_counts(np.array([[1, 1, 4, 4, 4, 9], [2, 2, 3, 3, 5, 6]], np.int32))
    assert found.num_P.tolist() == [3, 4]
    assert found.ids.tolist() == [4, 1, 9, 2, 3, 5, 6]
    assert found.counts.tolist() == [3, 2, 1, 2, 2, 1, 1]
    np.testing.assert_allclose(np.exp(-found.gaps[:3]), [1, 2 / 3, 1 / 3], rtol=1e-6)
