"""The formulas, against their definitions."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.judgement.win_and_tie import (
    critical_tolerances,
    needed_tolerances,
    win_and_tie_rates,
)

_SCORES = st.lists(
    st.tuples(st.floats(0.0, 100.0), st.floats(0.01, 100.0)), min_size=1, max_size=14
)


def tolerances(pairs: list[tuple[float, float]]) -> np.ndarray:
    student, teacher = np.array(pairs).T
    return needed_tolerances(student, teacher)


@given(_SCORES, st.floats(0.0, 1.0))
def test_rates_are_the_definition_s(pairs: list[tuple[float, float]], alpha: float) -> None:
    """[A_S ≥ (1 − α) A_T], but where rounding decides."""
    needed = tolerances(pairs)
    decided = [
        abs(student - (1 - alpha) * teacher) > 1e-9 * teacher or alpha == 0
        for student, teacher in pairs
    ]
    wins = [student >= (1 - alpha) * teacher for student, teacher in pairs]
    if all(decided):
        rate = win_and_tie_rates(needed, np.array([alpha]))
        assert rate[0, 0] == pytest.approx(np.mean(wins))


@given(_SCORES)
def test_the_critical_tolerance_is_the_least_with_half_of_the_benchmarks(
    pairs: list[tuple[float, float]],
) -> None:
    needed = tolerances(pairs)
    critical = critical_tolerances(needed)[0]
    assert win_and_tie_rates(needed, np.array([critical]))[0, 0] >= 0.5
    if critical > 0:
        below = np.nextafter(critical, 0.0)
        assert win_and_tie_rates(needed, np.array([below]))[0, 0] < 0.5


def test_half_of_an_odd_number_is_rounded_up() -> None:
    needed = np.array([0.0, 0.0, 0.3, 0.4, 0.5])
    assert critical_tolerances(needed)[0] == 0.3
    assert critical_tolerances(needed[:4])[0] == 0.0


@given(st.floats(1e-3, 100.0))
def test_the_smallest_difference_is_no_tie(score: float) -> None:
    student = np.array([math.nextafter(score, 0.0), score, math.nextafter(score, math.inf)])
    assert (needed_tolerances(student, np.full(3, score)) > 0).tolist() == [True, False, False]


def test_a_student_of_zero_needs_all_and_against_zero_nothing() -> None:
    found = needed_tolerances(np.array([0.0, 0.0, 1.0]), np.array([1.0, 0.0, 0.0]))
    assert found.tolist() == [1.0, 0.0, 0.0]
