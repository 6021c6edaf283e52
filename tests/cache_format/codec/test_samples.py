"""Draws from the tail: they come back, their bytes are as specified, and what breaks a rule is not.

Through whole rows, of which draws are a part: what they are stored relative to is the kept ids'.
"""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cache_format.codec.row import KeptIds
from cache_format.codec.row_codec import Row, decode_row, encode_row
from cache_format.codec.samples import TailSamples
from cache_format.coding import zstd_cells
from cache_format.coding.bits import with_length
from cache_format.metadata.spec import CacheSpec
from cache_format.tables.shared_files import SharedFiles
from cache_format.tables.vocabulary_ranks import RankTable
from tests.support.sample_cache import (
    assert_decoded,
    drawn_targets,
    sample_ranks,
    sample_row,
    sample_shared,
    sample_spec,
)

SPEC = sample_spec(with_sketch=False, targets=drawn_targets())
RANKS = sample_ranks()
SHARED = sample_shared()


def _cells(row: Row, spec: CacheSpec, ranks: RankTable = RANKS) -> dict[str, bytes]:
    encoded = encode_row(row, spec, SharedFiles(ranks=ranks))
    return {name: cell for name, cell in encoded.items() if isinstance(cell, bytes)}


def _round_trip(row: Row, spec: CacheSpec, ranks: RankTable = RANKS) -> Row:
    return decode_row(_cells(row, spec, ranks), row.document_starts, spec, SharedFiles(ranks=ranks))


def _changed(row: Row, **changes: Any) -> Row:
    """The row with other arrays of its kept ids."""
    return replace(row, kept_ids=replace(row.kept, **changes))


def _draws(found: Row) -> TailSamples:
    assert found.kept.draws is not None
    return found.kept.draws


@given(
    st.integers(0, 2**32), st.sampled_from([1, 2, 9, 64, 255]), st.sampled_from([2, 104, 128, 255])
)
def test_rows_with_tail_samples_round_trip(seed: int, num_draws: int, num_levels: int) -> None:
    """Ids and counts exactly, log-probabilities up to 1/16 nat, likeliest first."""
    spec = replace(
        SPEC, targets=drawn_targets(num_draws=num_draws, kept={"num_levels": num_levels})
    )
    row = sample_row(seed, spec)
    assert_decoded(_round_trip(row, spec), row, spec)


@given(st.integers(0, 2**32))
def test_the_input_order_of_tail_samples_does_not_matter(seed: int) -> None:
    row = sample_row(seed, SPEC)
    draws = _draws(row)
    random = np.random.default_rng(seed)
    position = np.repeat(np.arange(12), draws.num_ids)
    order = np.lexsort((random.random(len(position)), position))
    shuffled = TailSamples(
        num_ids=draws.num_ids,
        ids=draws.ids[order],
        counts=draws.counts[order],
        gaps=draws.gaps[order],
    )
    assert _cells(_changed(row, draws=shuffled), SPEC) == _cells(row, SPEC)


@pytest.mark.parametrize("vocab_size", [2, 3, 256, 151_936])
def test_tail_samples_round_trip_at_any_vocabulary_size(vocab_size: int) -> None:
    random = np.random.default_rng(vocab_size)
    ranks = RankTable.by_weight(random.integers(0, 100, vocab_size))
    teacher = replace(SPEC.teacher, vocab_size=vocab_size, head_rows=vocab_size, eos_token_id=0)
    top_k = min(300, vocab_size - 1)
    targets = drawn_targets(num_draws=255, kept={"top_k": top_k})
    spec = replace(SPEC, teacher=teacher, targets=targets, ranks_sha256=ranks.sha256)
    for seed in range(2 if vocab_size > 2**10 else 5):
        row = sample_row(seed, spec)
        assert_decoded(_round_trip(row, spec, ranks), row, spec)


def _row(gaps: list[float], draws: dict[int, int], *, tail: float = -2.0) -> Row:
    """One scored position, the first of 12, that keeps ids 0 and 1 at gaps 0 and 1.

    ``draws`` are counts by id, ``gaps`` theirs.
    """
    return Row(
        token_ids=np.zeros(13, np.int32),
        document_starts=np.arange(2, 13, dtype=np.int32),
        kept_ids=KeptIds(
            num_ids=np.array([2, *[0] * 11], np.uint16),
            ids=np.array([0, 1], np.int32),
            gaps=np.array([0.0, 1.0], np.float32),
            draws=TailSamples(
                num_ids=np.array([len(draws), *[0] * 11], np.uint16),
                ids=np.array(list(draws), np.int32),
                counts=np.array(list(draws.values()), np.uint16),
                gaps=np.array(gaps, np.float32),
            ),
            tail_log_mass=np.full((12, 3), tail, np.float32),
            next_logprob=np.full(12, -1.0, np.float32),
        ),
    )


def test_encoded_tail_samples_match_bytes_worked_out_by_hand() -> None:
    """40 ids: C = 7 (``test_entries``). Z = 1 + e⁻¹ + e⁻² = 1.5032, so log Z = 0.4076.

    The second kept id has log p = −1.4076, p^¼ = 0.7033, level (1 − 0.7033) · 128 = 38.0, rounded
    38. c = 4 ln(90.5/128) = −1.3867. Draws of log p −1.6576 (gap 1.25) and −3.4076 (gap 3):
    (c − log p) · 8 = 2.17 and 16.17, levels 2 and 16. Two of rank 5 and six of rank 7 at the first,
    one of rank 3 at the second.

    Entries: fall 2, distance 5: class 3, raw bits 01. Fall 0, distance 0. Fall 0, distance 2 (from
    rank 5): class 2, raw bit 0. Five times fall 0, distance 0. Fall 14, distance 3: class 2, raw
    bit 1. Raw bits, lowest first: 10, 0, 1.
    """
    a, b, c = (int(RANKS.ids_by_rank[rank]) for rank in (5, 7, 3))
    assert not {a, b, c} & {0, 1}
    row = _row([1.25, 1.25, 3.0], {b: 6, a: 2, c: 1})
    symbols = [[2 * 7 + 3], [0, 2, 0], [0, 0, 0, 0, 14 * 7 + 2]]
    cell = b"".join(with_length(zstd_cells.compress(bytes(group))) for group in symbols)
    assert _cells(row, SPEC)["drawn"] == cell + bytes([0b1_0_01])
    draws = _draws(_round_trip(row, SPEC))
    assert draws.num_ids.tolist() == [3, *[0] * 11]
    assert draws.ids.tolist() == [a, b, c]
    assert draws.counts.tolist() == [2, 6, 1]
    log_p0 = 4 * np.log(1 - np.rint((1 - np.exp(-0.40761 / 4)) * 128) / 128)
    ceiling = 4 * np.log(90.5 / 128)
    expected = log_p0 - ceiling + np.array([2, 2, 16]) / 8
    np.testing.assert_allclose(draws.gaps, expected, rtol=1e-6)


def test_a_tail_sample_at_the_gap_of_the_last_kept_id_round_trips() -> None:
    """Level 0 stands for what no draw lies above, so nothing has to be cut off there."""
    for last in np.linspace(0, 30, 400):
        row = _changed(_row([last], {39: 9}), gaps=np.array([0, last], np.float32))
        found, log_z = _round_trip(row, SPEC), np.log(1 + np.exp(-last) + np.exp(-2))
        level = np.rint((1 - np.exp(-log_z / 4)) * 128)
        logprob = 4 * np.log(1 - level / 128) - float(_draws(found).gaps[0])
        assert abs(logprob - (-last - log_z)) <= 1 / 16 + 1e-5


def test_a_tail_sample_below_the_lowest_level_gets_the_lowest_level() -> None:
    row = _row([1e30, 5.0], {38: 4, 39: 5})
    draws = _draws(_round_trip(row, SPEC))
    assert draws.ids.tolist() == [39, 38]
    last_gap = 4 * np.log(90 / 128)  # of the second kept id: level 38
    assert draws.gaps[1] - draws.gaps[0] > 20
    assert draws.gaps[1] < -last_gap + 255 / 8 + 1


@pytest.mark.parametrize("num_draws", [1, 255])
def test_a_single_id_may_have_all_tail_samples(num_draws: int) -> None:
    spec = replace(SPEC, targets=drawn_targets(num_draws=num_draws))
    draws = _draws(_round_trip(_row([2.0], {17: num_draws}), spec))
    assert (draws.ids.tolist(), draws.counts.tolist()) == ([17], [num_draws])


def test_the_same_id_may_end_one_position_and_begin_the_next() -> None:
    """Draws of two positions are never taken for one another's."""
    one = _row([2.0], {17: 9})
    two = _changed(
        replace(one, document_starts=np.arange(3, 13, dtype=np.int32)),
        num_ids=np.array([2, 2, *[0] * 10], np.uint16),
        ids=np.tile(one.kept.ids, 2),
        gaps=np.tile(one.kept.gaps, 2),
        draws=TailSamples(
            num_ids=np.array([1, 1, *[0] * 10], np.uint16),
            ids=np.array([17, 17], np.int32),
            counts=np.array([9, 9], np.uint16),
            gaps=np.array([2.0, 2.0], np.float32),
        ),
    )
    draws = _draws(_round_trip(two, SPEC))
    assert draws.num_ids.tolist() == [1, 1, *[0] * 10]
    assert draws.counts.tolist() == [9, 9]


def test_without_a_tail_no_samples_are_stored() -> None:
    row = _row([], {}, tail=-np.inf)
    assert _cells(row, SPEC)["drawn"] == b""
    draws = _draws(_round_trip(row, SPEC))
    assert len(draws.ids) == len(draws.counts) == len(draws.gaps) == draws.num_ids.sum() == 0


def test_a_row_without_scored_positions_has_no_tail_samples() -> None:
    nothing = np.zeros(0, np.int32)
    row = _changed(
        replace(_row([], {}), document_starts=np.arange(1, 13, dtype=np.int32)),
        num_ids=np.zeros(12, np.uint16),
        ids=nothing,
        gaps=nothing.astype(np.float32),
    )
    assert len(_draws(_round_trip(row, SPEC)).ids) == 0


GOOD = _row([1.5, 4.0], {20: 5, 30: 4})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"ids": [20]}, r"ids: expected shape \(2,\), found \(1,\)"),
        ({"counts": [9]}, r"counts: expected shape \(2,\)"),
        ({"gaps": [1.5]}, r"gaps: expected shape \(2,\)"),
        ({"num_ids": [2]}, r"num_ids: expected shape \(12,\), found \(1,\)"),
        ({"ids": [20, 40]}, "position 0: .*0 to 39, found 40"),
        ({"ids": [20, -1]}, "position 0: .*0 to 39, found -1"),
        ({"ids": [20, 20]}, "position 0: id 20 is drawn twice, or drawn and kept"),
        ({"ids": [20, 1]}, "position 0: id 1 is drawn twice, or drawn and kept"),
        ({"counts": [9, 0]}, "position 0: expected a count of 1 or more, found 0"),
        ({"counts": [5, 5]}, "position 0: expected 9 draws where .* found 10"),
        ({"num_ids": [1, 1, *[0] * 10]}, "position 0: expected 9 draws where .* found 5"),
        ({"gaps": [1.5, np.nan]}, "position 0: expected a finite gap, found nan"),
        ({"gaps": [1.5, np.inf]}, "position 0: expected a finite gap, found inf"),
        ({"gaps": [0.5, 4.0]}, "position 0: .*at least that of the last kept id, found 0.5"),
    ],
)
def test_tail_samples_that_break_a_rule_are_refused(changes: dict[str, Any], message: str) -> None:
    arrays = {
        name: np.array(values, getattr(_draws(GOOD), name).dtype)
        for name, values in changes.items()
    }
    assert_decoded(_round_trip(GOOD, SPEC), GOOD, SPEC)
    with pytest.raises(ValueError, match=f"^draws: {message}"):
        encode_row(_changed(GOOD, draws=replace(_draws(GOOD), **arrays)), SPEC, SHARED)


def test_tail_samples_without_a_tail_are_refused() -> None:
    whole = _changed(GOOD, tail_log_mass=np.full((12, 3), -np.inf, np.float32))
    with pytest.raises(ValueError, match=r"draws: position 0: .* otherwise 0, found 9"):
        encode_row(whole, SPEC, SHARED)


def test_tail_samples_must_be_present_exactly_where_the_spec_has_them() -> None:
    with pytest.raises(ValueError, match="draws: the spec says 'top_k', but the row has one"):
        encode_row(GOOD, sample_spec(with_sketch=False), SHARED)
    with pytest.raises(ValueError, match=r"draws: the spec says 'top_k\+sampled', .* has none"):
        encode_row(_changed(GOOD, draws=None), SPEC, SHARED)


def test_another_number_of_tail_samples_is_refused() -> None:
    cells = _cells(GOOD, SPEC)
    for num_draws in (8, 10, 1, 255):
        spec = replace(SPEC, targets=drawn_targets(num_draws=num_draws))
        with pytest.raises(ValueError, match=r"^drawn: expected"):
            decode_row(cells, GOOD.document_starts, spec, SHARED)


def test_a_cell_of_any_other_length_is_refused() -> None:
    cells = _cells(GOOD, SPEC)
    cell = cells["drawn"]
    for wrong in [cell + b"\0", *(cell[:length] for length in range(len(cell)))]:
        with pytest.raises(ValueError, match=r"^drawn: (expected|zstd)"):
            decode_row(cells | {"drawn": wrong}, GOOD.document_starts, SPEC, SHARED)


@pytest.mark.parametrize("temperature", [0.5, 0.75, 1.0])
def test_means_over_tail_samples_are_unbiased(temperature: float) -> None:
    """As the README says, at the node of the draws and, weighed, at the others."""
    random = np.random.default_rng(0)
    num_positions, vocab_size, num_draws, top_k = 4000, 40, 9, 5
    spec = replace(SPEC, sequence_length=num_positions)
    gaps = np.sort(random.exponential(2.0, vocab_size))
    gaps -= gaps[0]
    nodes, s = np.array(spec.targets.inverse_temperatures), 0.5
    tail_gaps = gaps[top_k:]
    tail = np.log(np.exp(-tail_gaps[:, None] * nodes).sum(axis=0))
    share = np.exp(-tail_gaps * s) / np.exp(-tail_gaps * s).sum()
    counts = random.multinomial(num_draws, share, num_positions)
    position, index = np.nonzero(counts)
    row = Row(
        token_ids=np.zeros(num_positions + 1, np.int32),
        document_starts=np.zeros(0, np.int32),
        kept_ids=KeptIds(
            num_ids=np.full(num_positions, top_k, np.uint16),
            ids=np.tile(np.arange(top_k, dtype=np.int32), num_positions),
            gaps=np.tile(gaps[:top_k], num_positions).astype(np.float32),
            draws=TailSamples(
                num_ids=(counts > 0).sum(axis=1).astype(np.uint16),
                ids=(top_k + index).astype(np.int32),
                counts=counts[position, index].astype(np.uint16),
                gaps=tail_gaps[index].astype(np.float32),
            ),
            tail_log_mass=np.tile(tail, (num_positions, 1)).astype(np.float32),
            next_logprob=np.full(num_positions, -1.0, np.float32),
        ),
    )
    found = _round_trip(row, spec)
    draws = _draws(found)
    node = nodes.tolist().index(temperature)
    of_id = random.normal(size=vocab_size)
    exact_share = np.exp(-tail_gaps * temperature) / np.exp(tail[node])
    masses = np.exp(found.kept.tail_log_mass[0, [0, node]].astype(np.float64))
    weights = np.exp((s - temperature) * draws.gaps.astype(np.float64)) * masses[0] / masses[1]
    values = draws.counts * weights * of_id[draws.ids] / num_draws
    means = np.bincount(np.repeat(np.arange(num_positions), draws.num_ids), values, num_positions)
    error = means.std() / np.sqrt(num_positions)
    exact = float(exact_share @ of_id[top_k:])
    # Rounding moves a weight by 1/16 nat · |s − s′| and the masses' ratio by 1/128 at most.
    rounding = (abs(s - temperature) / 16 + 2 / 128) * float(exact_share @ np.abs(of_id[top_k:]))
    assert abs(means.mean() - exact) < 4 * error + rounding
    assert 4 * error + rounding < 0.15 * float(exact_share @ np.abs(of_id[top_k:]))
