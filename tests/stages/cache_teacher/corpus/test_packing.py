"""Every token of a unit lands in one place, and every label's document is known."""

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from stages.cache_teacher.corpus.packing import IntArray, PackedUnit, pack, pack_whole, taking_turns

EOS = 0


def documents_of(lengths: Sequence[int]) -> list[IntArray]:
    """Documents whose ids count up from 1, so that every id of the stream is different."""
    ends = np.cumsum([0, *lengths])
    return [np.arange(first + 1, last + 1, dtype=np.int32) for first, last in pairwise(ends)]


def naive_rows(documents: Sequence[IntArray], length: int) -> list[tuple[list[int], list[int]]]:
    """Token ids and document starts of each row, one token at a time."""
    stream, is_start = [], []
    for document in documents:
        stream += [*document.tolist(), EOS]
        is_start += [True] + [False] * len(document)
    return [
        (
            stream[at : at + length + 1],
            [place for place in range(1, length + 1) if is_start[at + place]],
        )
        for at in range(0, len(stream) - length, length)
    ]


@given(lengths=st.lists(st.integers(0, 12), max_size=12), sequence_length=st.integers(2, 9))
def test_packed_rows_equal_those_of_a_naive_loop(lengths: list[int], sequence_length: int) -> None:
    documents = documents_of(lengths)
    packed = pack(documents, EOS, sequence_length)
    expected = naive_rows(documents, sequence_length)
    assert packed.token_ids_RT.tolist() == [ids for ids, _ in expected]
    assert [starts.tolist() for starts in packed.document_starts] == [s for _, s in expected]
    assert packed.token_ids_RT.dtype == np.int32
    assert packed.token_ids_RT.shape == (len(expected), sequence_length + 1)


@given(lengths=st.lists(st.integers(0, 12), max_size=12), sequence_length=st.integers(2, 9))
def test_packing_loses_and_repeats_no_token(lengths: list[int], sequence_length: int) -> None:
    documents = documents_of(lengths)
    packed = pack(documents, EOS, sequence_length)
    stream = [id for document in documents for id in [*document.tolist(), EOS]]
    rows = packed.token_ids_RT
    joined = [*rows[:, :-1].ravel(), *rows[-1:, -1]]
    assert joined == stream[: len(joined)]
    assert len(joined) + packed.num_dropped_tokens == len(stream)


def test_only_labels_of_the_same_document_are_scored() -> None:
    packed = pack(documents_of([2, 4]), EOS, 4)  # 1 2 EOS 3 | 4 5 6 EOS
    assert packed.token_ids_RT.tolist() == [[1, 2, EOS, 3, 4]]
    assert packed.scored_RT().tolist() == [[True, True, False, True]]
    assert packed.num_dropped_tokens == 3


def test_a_document_that_starts_where_a_row_ends_belongs_to_the_next_row() -> None:
    packed = pack(documents_of([3, 6]), EOS, 4)  # 1 2 3 EOS | 4 5 6 7 | 8 9 EOS
    assert [starts.tolist() for starts in packed.document_starts] == [[4], []]
    assert packed.scored_RT().tolist() == [[True, True, True, False], [True] * 4]


def test_a_document_longer_than_a_row_continues_in_the_next() -> None:
    packed = pack(documents_of([20]), EOS, 4)
    assert packed.token_ids_RT.tolist() == [
        [1, 2, 3, 4, 5],
        [5, 6, 7, 8, 9],
        [9, 10, 11, 12, 13],
        [13, 14, 15, 16, 17],
        [17, 18, 19, 20, EOS],
    ]
    assert all(len(starts) == 0 for starts in packed.document_starts)
    assert packed.num_dropped_tokens == 0


def test_a_slice_of_packed_rows_equals_those_rows() -> None:
    packed = pack(documents_of([5, 5, 5]), EOS, 3)
    part = packed.rows(1, 3)
    assert part.token_ids_RT.tolist() == packed.token_ids_RT[1:3].tolist()
    assert part.scored_RT().tolist() == packed.scored_RT()[1:3].tolist()


def test_no_documents_make_no_rows() -> None:
    assert pack([], EOS, 4).token_ids_RT.shape == (0, 5)


def rows_of(unit: PackedUnit) -> list[tuple[list[int], list[int], list[bool]]]:
    """Ids, document starts and scored positions of each row."""
    return [
        (ids.tolist(), starts.tolist(), scored.tolist())
        for ids, starts, scored in zip(
            unit.token_ids_RT, unit.document_starts, unit.scored_RT(), strict=True
        )
    ]


def test_units_take_turns_by_weight_and_every_row_stays_whole() -> None:
    others = [ids + 1000 for ids in documents_of([3, 9, 1])]
    many, few = pack(documents_of([7] * 30), EOS, 4), pack(others, EOS, 4)
    turns = taking_turns([many, few], [3.0, 1.0])
    own = [rows_of(unit) for unit in (many, few)]
    num_few = len(own[1])
    assert 1 < num_few < len(own[0]) / 3
    begun = rows_of(turns)[: 4 * num_few]
    for first in range(0, len(begun), 4):
        of_few = [row for row in begun[first : first + 4] if row in own[1]]
        assert of_few == own[1][first // 4 : first // 4 + 1]
    assert [row for row in begun if row not in own[1]] == own[0][: 3 * num_few]
    assert rows_of(turns)[4 * num_few :] == own[0][3 * num_few :]


def test_context_of_conversations_stays_with_their_rows() -> None:
    ids, is_scored = np.arange(1, 5, dtype=np.int32), np.array([False, False, True, True])
    chat, text = pack_whole([(ids, is_scored)] * 2, EOS, 4), pack(documents_of([8]), EOS, 4)
    turns = taking_turns([chat, text], [1.0, 1.0])
    assert sorted(rows_of(turns)) == sorted(rows_of(chat) + rows_of(text))
    assert taking_turns([text], [1.0]) is text
