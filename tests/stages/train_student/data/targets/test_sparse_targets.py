"""Targets at temperatures between and outside of the nodes; the shares of drawn ids."""

import math

import pytest
import torch

from stages.train_student.data.targets.interpolation import lagrange_weights
from stages.train_student.data.temperatures import covers
from tests.support.dense_teachers import NODES, make_problem, samples, sparse, with_draws


def test_interpolating_the_tail_costs_less_than_0_002_nats() -> None:
    *_, teacher = make_problem(6, 50, 2000)
    targets = sparse(teacher, [16] * 50, 16)
    rest = (teacher - teacher.amax(1, keepdim=True)).scatter(1, targets.kept_ids_NK, -math.inf)
    for temperature in (1.05, 1.37, 1.7, 1.93):
        exact = (rest / temperature).logsumexp(1).float()
        weights = torch.tensor(lagrange_weights(NODES, 1 / temperature))
        torch.testing.assert_close(targets.tail_log_mass_NM @ weights, exact, atol=2e-3, rtol=0)


def test_a_temperature_outside_the_nodes_is_refused() -> None:
    with pytest.raises(ValueError, match=r"temperature 2\.5 lies outside"):
        lagrange_weights(NODES, 1 / 2.5)


def test_a_rounded_temperature_at_the_edge_node_is_accepted() -> None:
    assert covers((0.75,), 1.333333)
    assert lagrange_weights((0.75,), 1 / 1.333333) == [1.0]
    assert not covers((0.75,), 1.3333)
    assert not covers((0.75,), 1.0)
    assert not covers(NODES, 0.999)


def test_samples_give_no_logprobs_at_another_temperature() -> None:
    *_, teacher = make_problem(0, 3, 20)
    targets = samples(teacher, 10, 4 / 3, torch.Generator().manual_seed(0))
    logprobs, tail = targets.logprobs(4 / 3)
    # Whatever was drawn, its count over the draws is a multiple of a tenth.
    tenths = logprobs.exp() * 10
    torch.testing.assert_close(tenths, tenths.round(), atol=1e-5, rtol=0)
    assert (tail == -math.inf).all()
    with pytest.raises(ValueError, match=r"temperature 2 lies outside .* 1\.33333 to 1\.33333"):
        targets.logprobs(2.0)


def test_at_their_own_temperature_sample_shares_are_count_fractions() -> None:
    *_, teacher = make_problem(1, 6, 50)
    targets = with_draws(
        sparse(teacher, [5] * 6, 5), teacher, 9, 1.6, torch.Generator().manual_seed(0)
    )
    assert targets.samples is not None
    targets.samples.gaps_NJ.mul_(1.3)
    shares, _ = targets.sample_shares(1.6)
    torch.testing.assert_close(shares, targets.samples.counts_NJ.double() / 9)


@pytest.mark.parametrize(("drawn_at", "temperature"), [(1.0, 2.0), (2.0, 1.0), (4 / 3, 1.6)])
def test_sample_shares_at_another_temperature_are_importance_weights(
    drawn_at: float, temperature: float
) -> None:
    *_, teacher = make_problem(2, 6, 50)
    targets = with_draws(
        sparse(teacher, [5] * 6, 5), teacher, 9, drawn_at, torch.Generator().manual_seed(0)
    )
    assert targets.samples is not None
    rest = teacher.scatter(1, targets.kept_ids_NK, -math.inf)
    drawn_from, wanted = (rest / drawn_at).softmax(1), (rest / temperature).softmax(1)
    ids, counts = targets.samples.ids_NJ, targets.samples.counts_NJ
    shares, logprobs = targets.sample_shares(temperature)
    expected = counts / 9 * wanted.gather(1, ids) / drawn_from.gather(1, ids)
    torch.testing.assert_close(shares, expected.nan_to_num(0.0), rtol=1e-4, atol=1e-6)
    assert (counts == 0).any()  # padding is there, and weighs nothing
    exact = wanted.gather(1, ids).log()[counts > 0]
    torch.testing.assert_close(logprobs[counts > 0], exact, rtol=1e-4, atol=1e-4)


def test_without_a_tail_samples_have_no_share() -> None:
    *_, teacher = make_problem(3, 2, 12)
    targets = with_draws(
        sparse(teacher, [12, 4], 12), teacher, 5, 1.0, torch.Generator().manual_seed(0)
    )
    shares, _ = targets.sample_shares(2.0)
    assert shares[0].tolist() == [0.0] * shares.shape[1]
    assert shares[1].sum() > 0
