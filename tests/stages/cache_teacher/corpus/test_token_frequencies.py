"""The table of ids by frequency: counted as a slow loop would, and from the beginning alone."""

from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stages.cache_teacher.corpus import token_frequencies
from stages.cache_teacher.corpus.token_frequencies import rank_table

IDS = st.lists(st.integers(0, 9), max_size=30)


def _documents(*documents: list[int]) -> list[np.ndarray]:
    return [np.array(document, np.int32) for document in documents]


@given(st.lists(IDS, max_size=4))
def test_ids_with_more_distinct_predecessors_rank_first(documents: list[list[int]]) -> None:
    ids = [token_id for document in documents for token_id in document]
    before: set[tuple[int, int, int]] = set()
    for index, token_id in enumerate(ids):
        for distance in range(1, min(token_frequencies.REACH, index) + 1):
            before.add((distance, ids[index - distance], token_id))
    weights = [sum(pair[2] == token_id for pair in before) for token_id in range(12)]
    expected = sorted(range(12), key=lambda token_id: (-weights[token_id], token_id))
    assert rank_table(_documents(*documents), 12).ids_by_rank.tolist() == expected


def test_ids_with_more_predecessors_rank_before_more_frequent_ids() -> None:
    # 7 follows 10, 11, … 39; 8 occurs more often, but only ever after 9.
    ids = [9, 8] * 60 + [id_ for other in range(10, 40) for id_ in (other, 7)]
    by_rank = rank_table(_documents(ids), 40).ids_by_rank.tolist()
    assert by_rank.index(7) < by_rank.index(8)


def test_without_documents_ranks_are_in_id_order() -> None:
    assert rank_table([], 5).ids_by_rank.tolist() == [0, 1, 2, 3, 4]
    assert rank_table(_documents([3]), 5).ids_by_rank.tolist() == [0, 1, 2, 3, 4]


def test_the_rank_table_is_deterministic() -> None:
    ids = np.random.default_rng(0).integers(0, 300, 5000).astype(np.int32)
    first, second = (rank_table([ids[:999], ids[999:]], 300) for _ in range(2))
    assert first.sha256 == second.sha256
    assert first.sha256 == rank_table([ids], 300).sha256


def test_counting_stops_after_enough_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(token_frequencies, "ENOUGH_TOKENS", 10)
    taken = 0

    def documents() -> Iterator[np.ndarray]:
        nonlocal taken
        while True:
            taken += 1
            yield np.full(4, taken, np.int32)

    table = rank_table(documents(), 100)
    assert taken == 3
    assert table.sha256 == rank_table(_documents([1] * 4, [2] * 4, [3] * 4), 100).sha256
