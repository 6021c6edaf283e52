"""Entries, kept or drawn, to bytes and back, exactly; and every cell that is not one."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cache_format.codec.entries import Entries, decode_entries, encode_entries, sort_entries
from cache_format.coding import zstd_cells
from cache_format.coding.bits import with_length

VOCAB_SIZES = [1, 2, 3, 255, 256, 151_936, 2**24]


def _entries(random: np.random.Generator, num_kept: np.ndarray, vocab_size: int) -> Entries:
    """Distinct ranks at each position, small ones more often; levels with many equals."""
    spread = random.integers(1, 256)
    levels = random.integers(0, spread + 1, num_kept.sum()).clip(0, 255)
    pool = vocab_size if random.random() < 0.5 else min(vocab_size, int(num_kept.max()) * 2 + 1)
    ranks = [random.choice(pool, count, replace=False) for count in num_kept.tolist()]
    return sort_entries(
        Entries(levels.astype(np.int64), np.concatenate([*ranks, []]).astype(np.int64)), num_kept
    )


@pytest.mark.parametrize("vocab_size", VOCAB_SIZES)
@given(st.lists(st.integers(0, 40), min_size=1, max_size=12), st.integers(0, 2**32))
def test_kept_entries_round_trip_at_any_vocabulary_size(
    vocab_size: int, counts: list[int], seed: int
) -> None:
    num_kept = np.minimum(counts, vocab_size).astype(np.int64)
    if vocab_size == 2**24:
        num_kept = num_kept[:2]
    entries = _entries(np.random.default_rng(seed), num_kept, vocab_size)
    data = encode_entries(entries, num_kept, vocab_size)
    found = decode_entries(data, num_kept, vocab_size)
    np.testing.assert_array_equal(found.levels, entries.levels)
    np.testing.assert_array_equal(found.ranks, entries.ranks)


@pytest.mark.parametrize("vocab_size", VOCAB_SIZES)
@given(st.lists(st.integers(0, 40), min_size=1, max_size=12), st.integers(0, 2**32))
def test_entries_of_repeated_ids_round_trip(vocab_size: int, counts: list[int], seed: int) -> None:
    random, num_drawn = np.random.default_rng(seed), np.array(counts, np.int64)
    most = min(vocab_size, int(random.choice([1, 3, 2**24])))
    levels, ranks = (
        random.integers(0, high, num_drawn.sum()) for high in (random.integers(1, 257), most)
    )
    entries = sort_entries(Entries(levels, ranks), num_drawn)
    data = encode_entries(entries, num_drawn, vocab_size, least_distance=0)
    found = decode_entries(data, num_drawn, vocab_size, least_distance=0)
    np.testing.assert_array_equal(found, entries)


@pytest.mark.parametrize("num_kept", [[300], [1], [300, 0, 1, 256, 255], [0], [0, 0, 0]])
def test_entries_round_trip_with_many_or_few_ids_at_a_position(num_kept: list[int]) -> None:
    counts = np.array(num_kept, np.int64)
    entries = _entries(np.random.default_rng(1), counts, 151_936)
    data = encode_entries(entries, counts, 151_936)
    found = decode_entries(data, counts, 151_936)
    np.testing.assert_array_equal(found, entries)
    if not counts.any():
        assert data == b""


@pytest.mark.parametrize("vocab_size", VOCAB_SIZES)
def test_every_level_difference_and_the_largest_rank_round_trip(vocab_size: int) -> None:
    """One entry at each of 256 positions, so that its level is its fall."""
    num_kept = np.ones(256, np.int64)
    entries = Entries(np.arange(256), np.full(256, vocab_size - 1))
    data = encode_entries(entries, num_kept, vocab_size)
    np.testing.assert_array_equal(decode_entries(data, num_kept, vocab_size), entries)


def _cell(symbols: list[list[int]], raw: bytes) -> bytes:
    return b"".join(with_length(zstd_cells.compress(bytes(group))) for group in symbols) + raw


def test_encoded_entries_match_bytes_worked_out_by_hand() -> None:
    """40 ids: C = 7, so 36 classes of falls, the last four of which begin at 32, 34, 38, 54.

    One position. Level 3, rank 5: class 3 of the fall, class 3 of the distance, raw bits 01.
    Level 3, rank 6: fall 0, distance 0. Level 36, rank 1: fall 33 has class 32 and raw bit 1,
    distance 1 class 1. Level 77, rank 39: fall 41 has class 34 and raw bits 0011, distance 39 =
    100111b has class 6 and raw bits 00111. Raw bits, lowest first: 10, -, 1, 11100 1100.
    """
    entries = Entries(np.array([3, 3, 36, 77]), np.array([5, 6, 1, 39]))
    data = encode_entries(entries, np.array([4]), 40)
    symbols = [[3 * 7 + 3], [0, 32 * 7 + 1, 34 * 7 + 6]]
    assert data == _cell(symbols, bytes([0b00111_1_01, 0b0011]))


def test_entries_are_coded_in_groups_of_slots() -> None:
    """65 entries: slot 0, 1 to 3, 4 to 15, 16 to 63, and 64."""
    entries = Entries(np.zeros(65, np.int64), np.arange(65))
    data = encode_entries(entries, np.array([65]), 256)
    sizes = [1, 3, 12, 48, 1]
    assert data == _cell([[0] * size for size in sizes], b"")


def test_entries_are_sorted_by_level_then_by_rank() -> None:
    entries = Entries(np.array([5, 1, 5, 0]), np.array([7, 9, 2, 8]))
    found = sort_entries(entries, np.array([3, 0, 1]))
    assert found.levels.tolist() == [1, 5, 5, 0]
    assert found.ranks.tolist() == [9, 2, 7, 8]


def test_a_repeated_id_at_one_level_is_refused() -> None:
    entries = Entries(np.array([1, 1]), np.array([4, 4]))
    with pytest.raises(ValueError, match="kept twice"):
        encode_entries(entries, np.array([2]), 40)
    encode_entries(entries, np.array([1, 1]), 40)
    data = encode_entries(entries, np.array([2]), 40, least_distance=0)
    # A distance of 0 is what is stored, where kept ids would be 1 apart.
    assert data == encode_entries(Entries(entries.levels, np.array([4, 5])), np.array([2]), 40)


def _refused(data: bytes, num_kept: list[int], vocab_size: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        decode_entries(data, np.array(num_kept, np.int64), vocab_size)


def test_symbols_outside_the_alphabet_are_refused() -> None:
    assert decode_entries(_cell([[251]], b"\0\0"), np.array([1]), 40)
    _refused(_cell([[252]], b"\0\0"), [1], 40, "symbols below 252, found 252")
    _refused(_cell([[255]], b"\0\0"), [1], 40, "symbols below 252, found 255")


def test_ranks_outside_the_vocabulary_are_refused() -> None:
    # Class 6 of the distance is 32 and 5 raw bits.
    assert decode_entries(_cell([[6]], bytes([7])), np.array([1]), 40).ranks.tolist() == [39]
    _refused(_cell([[6]], bytes([8])), [1], 40, "ranks below 40, found 0 and 40")
    # Rank 39, and behind it in the same level.
    _refused(_cell([[6], [0]], bytes([7])), [2], 40, "ranks below 40, found 0 and 40")


def test_levels_above_a_byte_are_refused() -> None:
    largest = bytes([201, 0])  # class 35 begins at 54, so 255 = 54 + 201
    assert decode_entries(_cell([[35 * 7]], largest[:1]), np.array([1]), 40).levels == 255
    _refused(_cell([[35 * 7]], bytes([202])), [1], 40, "levels up to 255 .* found 256 and 0")
    _refused(_cell([[35 * 7], [7]], largest[:1]), [2], 40, "levels up to 255 .* found 256 and 0")


def test_a_cell_of_any_other_length_is_refused() -> None:
    num_kept = np.array([5, 0, 70], np.int64)
    data = encode_entries(_entries(np.random.default_rng(0), num_kept, 1000), num_kept, 1000)
    for wrong in [data + b"\0", *(data[:length] for length in range(len(data)))]:
        _refused(wrong, num_kept.tolist(), 1000, r"expected|zstd")
    for counts in ([5, 0, 69], [5, 0, 71], [6, 0, 70], [5, 0, 0], [0, 0, 0], [5, 0, 300]):
        _refused(data, counts, 1000, r"expected")
