"""Tables of ids by frequency: permutations, their bytes, and everything that is none."""

import hashlib
import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cache_format.tables.vocabulary_ranks import RankTable


@given(st.integers(1, 300), st.integers(0, 2**32))
def test_rank_tables_round_trip_through_bytes(vocab_size: int, seed: int) -> None:
    ids = np.random.default_rng(seed).permutation(vocab_size).astype(np.int32)
    table = RankTable(ids)
    data = table.to_bytes()
    found = RankTable.from_bytes(data, vocab_size)
    np.testing.assert_array_equal(found.ids_by_rank, ids)
    np.testing.assert_array_equal(found.ranks_by_id[ids], np.arange(vocab_size))
    assert found.sha256 == hashlib.sha256(data).hexdigest()


def test_rank_tables_are_stored_as_little_endian_int32() -> None:
    assert RankTable(np.array([1, 0], np.int32)).to_bytes() == b"\1\0\0\0\0\0\0\0"


def test_ranks_order_by_weight_and_ties_by_lowest_id() -> None:
    table = RankTable.by_weight(np.array([0, 5, 0, 7, 5]))
    assert table.ids_by_rank.tolist() == [3, 1, 4, 0, 2]


@pytest.mark.parametrize(
    "ids", [[0, 0], [0, 2], [1, 2], [-1, 1], [0, -1], [0, 2**31 - 1], [-(2**31), 1]]
)
def test_a_table_that_is_no_permutation_is_refused(ids: list[int]) -> None:
    """And nothing as large as the largest id is allocated."""
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match="expected every id exactly once"):
            RankTable(np.array(ids, np.int32))
        assert tracemalloc.get_traced_memory()[1] < 2**20
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("num_bytes", [0, 7, 9, 12])
def test_a_rank_table_of_another_length_is_refused(num_bytes: int) -> None:
    with pytest.raises(ValueError, match=f"ranks: expected 8 bytes, found {num_bytes}"):
        RankTable.from_bytes(bytes(num_bytes), 2)
