"""The bootstrap against what is known of differences."""

import numpy as np
import pytest

from pipeline.judgement.bootstrap import BootstrapOptions
from pipeline.student_comparison.paired_bootstrap import paired_difference

OPTIONS = BootstrapOptions(num_resamples=2000, seed=0)


def test_the_difference_is_that_of_the_means_over_positions() -> None:
    num_scored = np.array([1.0, 3.0, 0.0])
    found = paired_difference(
        np.array([2.0, 6.0, 0.0]), np.array([1.0, 3.0, 0.0]), num_scored, OPTIONS
    )
    assert found.value == pytest.approx(4 / 4 - 8 / 4)


def test_what_both_find_hard_is_no_uncertainty() -> None:
    """Rows differ by hundreds, students by a half in each of them: unpaired, nothing would show."""
    random = np.random.default_rng(1)
    num_scored = np.full(40, 10.0)
    first = random.normal(0.0, 300.0, 40)
    found = paired_difference(first, first - 5.0, num_scored, OPTIONS)
    assert (found.low, found.high) == pytest.approx((-0.5, -0.5))
    assert found.is_real
    assert found.share == pytest.approx(2 / 2001)


def test_equal_students_differ_by_nothing() -> None:
    sums = np.arange(5.0)
    found = paired_difference(sums, sums, np.full(5, 2.0), OPTIONS)
    assert (found.value, found.low, found.high, found.share) == (0.0, 0.0, 0.0, 1.0)
    assert not found.is_real


def test_the_interval_is_that_of_the_normal_distribution_for_many_rows() -> None:
    random = np.random.default_rng(2)
    differences, num_scored = random.normal(0.03, 1.0, 400), np.ones(400)
    found = paired_difference(np.zeros(400), differences, num_scored, OPTIONS)
    margin = 1.96 * differences.std() / np.sqrt(400)
    assert found.low == pytest.approx(differences.mean() - margin, abs=0.1 * margin)
    assert found.high == pytest.approx(differences.mean() + margin, abs=0.1 * margin)


def test_the_interval_holds_the_truth_as_often_as_it_says() -> None:
    """Over 200 draws of a difference that is zero, about one in twenty is called real."""
    random = np.random.default_rng(3)
    options = BootstrapOptions(num_resamples=400, seed=0)
    num_real = 0
    for _ in range(200):
        num_scored = random.integers(5, 50, 60).astype(float)
        differences = random.normal(0.0, 1.0, 60) * num_scored
        found = paired_difference(np.zeros(60), differences, num_scored, options)
        num_real += found.is_real
    assert 2 <= num_real <= 24


def test_rows_without_scored_positions_are_refused() -> None:
    with pytest.raises(ValueError, match="none of the rows has a scored position"):
        paired_difference(np.zeros(3), np.zeros(3), np.zeros(3), OPTIONS)
