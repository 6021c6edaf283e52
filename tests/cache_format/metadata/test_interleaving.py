"""Rows are divided among sources by weight, as evenly as whole rows can be."""

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cache_format.metadata.interleaving import interleaving

_WEIGHTS = st.lists(st.integers(1, 50), min_size=1, max_size=6)


@given(_WEIGHTS, st.integers(1, 300))
def test_a_source_is_less_than_a_row_from_its_share_at_every_place(
    weights: list[int], num_rows: int
) -> None:
    source_n, before_n = interleaving(weights).at(np.arange(num_rows))
    for source, weight in enumerate(weights):
        is_own_n = source_n == source
        share = Fraction(weight, sum(weights))
        for place, count in enumerate(np.cumsum(is_own_n).tolist(), 1):
            assert abs(count - share * place) < 1
        assert before_n[is_own_n].tolist() == list(range(is_own_n.sum()))


@given(_WEIGHTS, st.integers(0, 10**12))
def test_any_place_is_found_without_those_before_it(weights: list[int], first: int) -> None:
    found = interleaving(weights)
    period = sum(found.shares)
    source_n, before_n = found.at(np.arange(first, first + period))
    assert np.bincount(source_n, minlength=len(weights)).tolist() == list(found.shares)
    again_n, before_again_n = found.at(np.arange(first + period, first + 2 * period))
    assert again_n.tolist() == source_n.tolist()
    assert (before_again_n - before_n).tolist() == np.array(found.shares)[source_n].tolist()


def test_the_sources_of_rows_equal_the_golden_ones() -> None:
    # A checkpoint made with one version must continue the same order with the next.
    source_n, before_n = interleaving([0.5, 0.3, 0.2]).at(np.arange(12))
    assert source_n.tolist() == [0, 1, 0, 2, 0, 1, 0, 1, 0, 2, 0, 1]
    assert before_n.tolist() == [0, 0, 1, 0, 2, 1, 3, 2, 4, 1, 5, 3]


def test_weights_are_the_decimal_numbers_that_they_are_written_as() -> None:
    assert interleaving([0.1, 0.2]).shares == (1, 2)  # in binary, 0.2 is not twice 0.1 exactly
    assert interleaving([4, 6]) == interleaving([0.4, 0.6]) == interleaving([2e-5, 3e-5])


def test_long_periods_are_shortened_to_shares_within_a_millionth() -> None:
    weights = (0.414213562, 0.312345671, 0.273440767)
    shares = interleaving(weights).shares
    assert sum(shares) <= 2**20
    for share, weight in zip(shares, weights, strict=True):
        assert abs(share / sum(shares) - weight / sum(weights)) < 1e-6


def test_impossible_weights_are_refused() -> None:
    for weight in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(ValueError, match=f"must be above 0 and finite, found {weight:g}"):
            interleaving([1.0, weight])
    with pytest.raises(ValueError, match="1e-09 is less than a millionth of their sum"):
        interleaving([1.0, 1e-9])
