"""Probabilities to levels of their fourth root, off by half a step at most."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from cache_format.codec.quantizer import ceilings_of_levels, logprobs_of_levels, to_levels

NUM_LEVELS = st.sampled_from([2, 3, 104, 128, 176, 255])


@given(
    hnp.arrays(np.float64, st.integers(0, 50), elements=st.floats(-2000, 0)),
    NUM_LEVELS,
)
def test_fourth_roots_of_probabilities_are_within_half_a_step(
    logprobs: np.ndarray, num: int
) -> None:
    levels = to_levels(logprobs, num)
    assert ((levels >= 0) & (levels <= num)).all()
    decoded = logprobs_of_levels(num)[levels]
    errors = np.abs(np.exp(decoded / 4) - np.exp(logprobs / 4))
    assert (errors <= 0.5 / num * (1 + 1e-9)).all()


@given(hnp.arrays(np.float64, st.integers(0, 50), elements=st.floats(-2000, 0)), NUM_LEVELS)
def test_no_logprob_is_above_the_ceiling_of_its_level(logprobs: np.ndarray, num: int) -> None:
    ceilings = ceilings_of_levels(num)
    levels = to_levels(logprobs, num)
    assert (logprobs <= ceilings[levels] + 1e-12).all()
    assert (ceilings >= logprobs_of_levels(num)).all()
    # It is met: what lies above it has a higher level.
    inner = ceilings[1:] < 0
    assert (to_levels(ceilings[1:][inner] + 1e-9, num) == np.flatnonzero(inner)).all()


@pytest.mark.parametrize("num", [2, 128, 255])
def test_every_level_round_trips_through_its_logprob(num: int) -> None:
    logprobs = logprobs_of_levels(num)
    assert len(logprobs) == num + 1
    assert to_levels(logprobs, num).tolist() == list(range(num + 1))
    assert (np.diff(logprobs) < 0).all()


def test_level_logprobs_match_values_worked_out_by_hand() -> None:
    """With 4 levels: 1, (3/4)⁴, (1/2)⁴, (1/4)⁴ and (1/16)⁴."""
    expected = [1.0, 81 / 256, 1 / 16, 1 / 256, 1 / 65536]
    np.testing.assert_allclose(np.exp(logprobs_of_levels(4)), expected, rtol=1e-12)
    # Halfway between two levels the even one is taken.
    halfway = 4 * np.log(np.array([7 / 8, 5 / 8, 3 / 8]))
    assert to_levels(halfway, 4).tolist() == [0, 2, 2]


def test_level_ceilings_match_values_worked_out_by_hand() -> None:
    """With 4 levels: 1, (7/8)⁴, (5/8)⁴, (3/8)⁴ and (1/8)⁴."""
    expected = np.array([8, 7, 5, 3, 1]) / 8
    np.testing.assert_allclose(np.exp(ceilings_of_levels(4) / 4), expected, rtol=1e-12)


def test_a_probability_just_above_1_is_level_0_and_0_is_the_last_level() -> None:
    assert to_levels(np.array([1e-3, 0.0, -np.inf]), 128).tolist() == [0, 0, 128]
