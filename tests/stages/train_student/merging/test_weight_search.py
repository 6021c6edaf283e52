"""The search over weights: where it ends, what it may spend, and that it repeats itself."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stages.train_student.merging.weight_search import (
    Weights,
    best_trial,
    least_evaluations,
    moved,
    search_weights,
)


def bowl(*centre: float) -> "Bowl":
    return Bowl(centre)


class Bowl:
    """A score with its least value at a point, which counts how often it is asked."""

    def __init__(self, centre: Weights) -> None:
        self.centre = centre
        self.asked: list[Weights] = []

    def __call__(self, weights: Weights) -> float:
        self.asked.append(weights)
        return sum((a - b) ** 2 for a, b in zip(weights, self.centre, strict=True))


@pytest.mark.parametrize(
    "centre", [(0.3, 0.7), (1.0, 0.0), (0.35, 0.35, 0.2, 0.1), (0.0, 0.6, 0.4)]
)
def test_it_finds_the_least_value(centre: Weights) -> None:
    start = (1 / len(centre),) * len(centre)
    best = best_trial(search_weights(bowl(*centre), start, 400))
    for found, wanted in zip(best.weights, centre, strict=True):
        assert found == pytest.approx(wanted, abs=0.03)


def test_it_begins_with_the_start_each_alone_and_the_mean() -> None:
    trials = search_weights(bowl(0.3, 0.7), (0.9, 0.1), 4)
    assert [trial.weights for trial in trials] == [(0.9, 0.1), (1, 0), (0, 1), (0.5, 0.5)]


@given(st.integers(5, 60), st.floats(0, 1))
def test_it_keeps_to_its_budget_and_scores_nothing_twice(budget: int, first: float) -> None:
    score = bowl(first, (1 - first) / 2, (1 - first) / 2)
    trials = search_weights(score, (1 / 3,) * 3, budget)
    assert len(trials) == len(score.asked) <= budget
    assert len(set(score.asked)) == len(score.asked)
    for trial in trials:
        assert math.fsum(trial.weights) == pytest.approx(1)
        assert min(trial.weights) >= 0
    assert best_trial(trials).score <= min(trial.score for trial in trials[:4])


def test_it_repeats_itself() -> None:
    assert search_weights(bowl(0.1, 0.9), (0.5, 0.5), 30) == search_weights(
        bowl(0.1, 0.9), (0.5, 0.5), 30
    )


def test_what_is_no_number_is_never_best() -> None:
    def score(weights: Weights) -> float:
        return math.nan if weights[0] > 0.5 else weights[1]

    trials = search_weights(score, (0.5, 0.5), 30)
    assert best_trial(trials).score == pytest.approx(0.5)
    assert math.inf in [trial.score for trial in trials]


def test_a_budget_for_nothing_is_refused() -> None:
    least = least_evaluations(2)
    search_weights(bowl(0.5, 0.5), (0.5, 0.5), least)
    with pytest.raises(ValueError, match=f"need at least {least}"):
        search_weights(bowl(0.5, 0.5), (0.5, 0.5), least - 1)


def test_a_share_that_is_changed_leaves_the_others_their_proportions() -> None:
    assert moved((0.5, 0.3, 0.2), 0, 0.25) == pytest.approx((0.75, 0.15, 0.1))
    assert moved((0.5, 0.3, 0.2), 0, -1.0) == pytest.approx((0.0, 0.6, 0.4))
    assert moved((1.0, 0.0, 0.0), 0, -0.5) == pytest.approx((0.5, 0.25, 0.25))
    assert moved((0.5, 0.5, 0.0), 2, 2.0) == (0.0, 0.0, 1.0)
