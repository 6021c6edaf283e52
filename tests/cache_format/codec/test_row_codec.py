"""A whole row to columns and back, and the rules that hold between columns."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cache_format.codec.row_codec import Row, decode_row, encode_row
from cache_format.metadata.spec import CacheSpec
from cache_format.metadata.spec_parts.sketch import SketchSpec
from cache_format.metadata.vocabulary_ranks import RankTable
from tests.support.sample_cache import (
    assert_decoded,
    by_position,
    sample_ranks,
    sample_row,
    sample_spec,
    sampled_targets,
)

SPEC = sample_spec()
DTYPES = ("int8", "float16", "float32")


def _cells(row: Row, spec: CacheSpec, ranks: RankTable | None = None) -> dict[str, bytes]:
    encoded = encode_row(row, spec, ranks or sample_ranks())
    return {name: cell for name, cell in encoded.items() if isinstance(cell, bytes)}


def _round_trip(row: Row, spec: CacheSpec, ranks: RankTable | None = None) -> Row:
    cells = _cells(row, spec, ranks)
    return decode_row(cells, row.document_starts, spec, ranks or sample_ranks())


@given(st.integers(0, 2**32), st.sampled_from([None, *DTYPES]), st.sampled_from([2, 104, 128, 255]))
def test_rows_round_trip_for_every_sketch_dtype_and_number_of_levels(
    seed: int, dtype: Any, num_levels: int
) -> None:
    targets = replace(SPEC.targets, num_levels=num_levels)
    spec = sample_spec(with_sketch=dtype is not None, targets=targets)
    if dtype is not None:
        spec = replace(spec, sketch=SketchSpec(kind="rademacher", dim=8, dtype=dtype))
    row = sample_row(seed, spec)
    assert_decoded(_round_trip(row, spec), row, spec)


@given(st.integers(0, 2**32), st.sampled_from([5, 50, 255]), st.sampled_from([1.0, 0.5, 1 / 3]))
def test_sample_counts_round_trip_exactly(seed: int, num_draws: int, node: float) -> None:
    targets = sampled_targets(num_levels=num_draws, inverse_temperatures=(node,))
    spec = sample_spec(targets=targets)
    row = sample_row(seed, spec)
    found = _round_trip(row, spec)
    assert_decoded(found, row, spec)
    assert found.counts is not None
    for counts, gaps in zip(
        by_position(found, found.counts), by_position(found, found.gaps), strict=True
    ):
        mass = np.exp(-np.array([gaps[token_id] for token_id in counts]))
        shares = np.array(list(counts.values())) / num_draws
        np.testing.assert_allclose(mass / mass.sum() if counts else mass, shares, rtol=1e-6)


@given(st.integers(0, 2**32), st.sampled_from(["flat", "peaked", "ties"]))
def test_rows_that_keep_the_whole_vocabulary_have_no_tail(seed: int, shape: str) -> None:
    """No tail anywhere, be the distribution even, all on one id, or one of many equals."""
    spec = sample_spec(targets=replace(SPEC.targets, top_k=40))
    random = np.random.default_rng(seed)
    gaps = {
        "flat": np.zeros((12, 40)),
        "peaked": np.concatenate([np.zeros((12, 1)), np.full((12, 39), 900.0)], axis=1),
        "ties": np.sort(random.integers(0, 4, (12, 40)), axis=1),
    }[shape]
    gaps -= gaps[:, :1]
    row = replace(
        _row_of_one_document(spec),
        num_kept=np.full(12, 40, np.uint16),
        kept_ids=np.concatenate([random.permutation(40) for _ in range(12)]).astype(np.int32),
        gaps=gaps.reshape(-1).astype(np.float32),
        tail_log_mass=np.full((12, 3), -np.inf, np.float32),
    )
    found = _round_trip(row, spec)
    assert_decoded(found, row, spec)
    assert np.isneginf(found.tail_log_mass).all()


@pytest.mark.parametrize("vocab_size", [1, 2, 3, 255, 256, 151_936, 2**24])
def test_rows_round_trip_at_any_vocabulary_size(vocab_size: int) -> None:
    random = np.random.default_rng(vocab_size)
    ranks = RankTable.by_weight(random.integers(0, 100, vocab_size))
    top_k = min(300, vocab_size)
    teacher = replace(SPEC.teacher, vocab_size=vocab_size, head_rows=vocab_size, eos_token_id=0)
    targets = replace(SPEC.targets, top_k=top_k, ranks_sha256=ranks.sha256)
    spec = sample_spec(teacher=teacher, targets=targets)
    for seed in range(2 if vocab_size > 2**10 else 9):
        row = sample_row(seed, spec)
        assert_decoded(_round_trip(row, spec, ranks), row, spec)


def test_ids_of_one_level_come_back_in_order_of_frequency() -> None:
    ranks = sample_ranks()
    row = replace(
        _row_of_one_document(SPEC),
        kept_ids=np.tile(ranks.ids_by_rank[[9, 4]], 12),
        gaps=np.zeros(24, np.float32),
    )
    assert _round_trip(row, SPEC).kept_ids.tolist() == ranks.ids_by_rank[[4, 9]].tolist() * 12


def _zipf_logits(random: np.random.Generator, num_positions: int, vocab_size: int) -> np.ndarray:
    """Logits that fall with the logarithm of the rank, some positions peaked and others flat."""
    rank = np.arange(1, vocab_size + 1)
    exponent = random.uniform(0.8, 2.2, (num_positions, 1))
    logits = -exponent * np.log(rank) + random.normal(0, 0.7, (num_positions, vocab_size))
    logits[:, 0] += random.exponential(3.0, num_positions)
    return -np.sort(-logits, axis=1)


@pytest.mark.parametrize(("temperature", "top_k"), [(1.0, 64), (2.0, 64), (1.0, 32)])
def test_decoding_costs_few_nats_of_kl_divergence(temperature: float, top_k: int) -> None:
    """KL(exact ‖ decoded) over the kept ids and the tail, with the default levels and step."""
    random = np.random.default_rng(0)
    num_positions, vocab_size = 400, 4000
    ranks = RankTable.by_weight(random.integers(0, 9, vocab_size))
    targets = replace(
        SPEC.targets, top_k=top_k, keep_mass=1.0, num_levels=128, ranks_sha256=ranks.sha256
    )
    teacher = replace(SPEC.teacher, vocab_size=vocab_size, head_rows=vocab_size)
    spec = sample_spec(
        with_sketch=False, sequence_length=num_positions, targets=targets, teacher=teacher
    )
    gaps = _zipf_logits(random, num_positions, vocab_size)
    gaps = gaps[:, :1] - gaps
    nodes = np.array(targets.inverse_temperatures)
    tail = np.log(np.exp(-gaps[:, top_k:, None] * nodes).sum(axis=1))
    row = Row(
        token_ids=np.zeros(num_positions + 1, np.int32),
        document_starts=np.zeros(0, np.int32),
        num_kept=np.full(num_positions, top_k, np.uint16),
        kept_ids=np.tile(np.arange(top_k, dtype=np.int32), num_positions),
        gaps=gaps[:, :top_k].reshape(-1).astype(np.float32),
        tail_log_mass=tail.astype(np.float32),
        next_logprob=np.full(num_positions, -1.0, np.float32),
        sketch=None,
    )
    found = _round_trip(row, spec, ranks)
    assert (found.kept_ids != row.kept_ids).any()
    decoded_gaps = np.empty((num_positions, top_k))
    np.put_along_axis(
        decoded_gaps, found.kept_ids.reshape(-1, top_k), found.gaps.reshape(-1, top_k), axis=1
    )
    node = nodes.tolist().index(1 / temperature)

    def outcomes(kept_gaps: np.ndarray, tail_log_mass: np.ndarray) -> np.ndarray:
        masses = np.exp(np.c_[-kept_gaps / temperature, tail_log_mass[:, node]].astype(np.float64))
        shares: np.ndarray = masses / masses.sum(axis=1, keepdims=True)
        return shares

    exact, decoded = outcomes(gaps[:, :top_k], tail), outcomes(decoded_gaps, found.tail_log_mass)
    divergence = (exact * np.log(exact / decoded)).sum(axis=1)
    assert 1e-6 < divergence.mean() < 2e-4


def test_a_row_without_scored_positions_round_trips() -> None:
    row = replace(
        sample_row(0, SPEC),
        document_starts=np.arange(1, 13, dtype=np.int32),
        num_kept=np.zeros(12, np.uint16),
        kept_ids=np.zeros(0, np.int32),
        gaps=np.zeros(0, np.float32),
    )
    assert not row.scored().any()
    assert_decoded(_round_trip(row, SPEC), row, SPEC)


def test_only_positions_whose_next_token_is_in_the_same_document_are_scored() -> None:
    row = replace(sample_row(0, SPEC), document_starts=np.array([1, 5, 12], np.int32))
    assert np.flatnonzero(~row.scored()).tolist() == [0, 4, 11]


def test_values_at_unscored_positions_may_be_anything() -> None:
    row = sample_row(3, SPEC)
    scored = row.scored()
    assert not scored.all()
    assert row.sketch is not None
    other = replace(
        row,
        next_logprob=np.where(scored, row.next_logprob, np.nan),
        tail_log_mass=np.where(scored[:, None], row.tail_log_mass, np.nan),
        sketch=np.where(scored[:, None], row.sketch, np.nan),
    )
    assert_decoded(_round_trip(other, SPEC), row, SPEC)
    assert _cells(other, SPEC) == _cells(row, SPEC)


def _starts(*values: int) -> np.ndarray:
    return np.array(values, np.int32)


def _gaps(first: float, second: float) -> np.ndarray:
    return np.tile(np.array([first, second], np.float32), 12)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"token_ids": np.zeros(12, np.int32)}, r"token_ids: expected shape \(13,\), found \(12,"),
        ({"token_ids": np.full(13, 40, np.int32)}, "token_ids: position 0: .*found 40"),
        ({"document_starts": _starts(0)}, "document_starts: expected rising .* from 1 to 12"),
        ({"document_starts": _starts(13)}, "document_starts: expected rising .* from 1 to 12"),
        ({"document_starts": _starts(4, 4)}, "document_starts: expected rising"),
        ({"document_starts": np.array([1.0])}, "document_starts: expected one dimension of int"),
        ({"num_kept": np.zeros(11, np.uint16)}, r"num_kept: expected shape \(12,\), found \(11,"),
        ({"document_starts": _starts(3)}, "num_kept: position 2: expected 0 where not scored"),
        ({"kept_ids": np.zeros(1, np.int32)}, "kept_ids: expected shape"),
        ({"kept_ids": np.full(24, 40, np.int32)}, "kept_ids: .*position 0: .*0 to 39, found 40"),
        ({"kept_ids": np.full(24, -1, np.int32)}, "kept_ids: .*position 0: .*found -1"),
        ({"gaps": np.zeros(1, np.float32)}, "gaps: expected shape"),
        ({"gaps": _gaps(0, np.nan)}, "gaps: position 0: .*found nan"),
        ({"gaps": _gaps(0, np.inf)}, "gaps: position 0: .*found inf"),
        ({"gaps": _gaps(1, 1)}, "gaps: position 0: expected a first gap of 0, found 1"),
        ({"gaps": _gaps(0, -1)}, "gaps: position 0: expected a finite gap ≥ 0, found -1"),
        ({"counts": np.ones(24, np.uint16)}, "counts: the spec says 'top_k', but the row has one"),
        ({"tail_log_mass": np.zeros((12, 2), np.float32)}, "tail_log_mass: expected shape"),
        ({"tail_log_mass": np.full((12, 3), np.nan)}, "tail_log_mass: position 0: .*found nan"),
        ({"tail_log_mass": np.full((12, 3), np.inf)}, "tail_log_mass: position 0: .*found "),
        ({"next_logprob": np.zeros(11, np.float32)}, "next_logprob: expected shape"),
        ({"next_logprob": np.full(12, np.nan)}, "next_logprob: position 0: .*found nan"),
        ({"sketch": np.zeros((12, 7), np.float32)}, "sketch: expected shape"),
        ({"sketch": np.full((12, 8), np.inf)}, "sketch: position 0: .*finite"),
        ({"sketch": None}, "sketch: the spec says 'rademacher', but the row has none"),
    ],
)
def test_rows_that_break_a_rule_are_refused(changes: dict[str, Any], message: str) -> None:
    row = _row_of_one_document(SPEC)
    encode_row(row, SPEC, sample_ranks())
    with pytest.raises(ValueError, match=message):
        encode_row(replace(row, **changes), SPEC, sample_ranks())


def test_decreasing_logit_gaps_are_refused() -> None:
    row = replace(
        _row_of_one_document(SPEC),
        num_kept=np.array([3, *[2] * 11], np.uint16),
        kept_ids=np.arange(25, dtype=np.int32),
        gaps=np.array([0, 2, 1, *[0, 1] * 11], np.float32),
    )
    with pytest.raises(
        ValueError, match=r"gaps: position 0: .*do not fall along the rank, found 1"
    ):
        encode_row(row, SPEC, sample_ranks())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"counts": np.tile(np.array([50, 0], np.uint16), 12)}, "counts: position 0: .*found 0"),
        (
            {"counts": np.tile(np.array([30, 19], np.uint16), 12)},
            "position 0: .*50 draws, found 49",
        ),
        ({"counts": None}, "counts: the spec says 'sampled', but the row has none"),
        ({"counts": np.ones(23, np.uint16)}, "counts: expected shape"),
        ({"tail_log_mass": np.zeros((12, 1), np.float32)}, "tail_log_mass: samples have no tail"),
    ],
)
def test_samples_that_break_a_rule_are_refused(changes: dict[str, Any], message: str) -> None:
    spec = sample_spec(targets=sampled_targets())
    row = replace(
        _row_of_one_document(spec),
        counts=np.tile(np.array([30, 20], np.uint16), 12),
        tail_log_mass=np.full((12, 1), -np.inf, np.float32),
    )
    assert_decoded(_round_trip(row, spec), row, spec)
    with pytest.raises(ValueError, match=message):
        encode_row(replace(row, **changes), spec, sample_ranks())


def test_a_scored_position_without_kept_ids_is_refused() -> None:
    row = _row_of_one_document(SPEC)
    num_kept = row.num_kept.copy()
    num_kept[4] = 0
    short = replace(row, num_kept=num_kept, kept_ids=row.kept_ids[2:], gaps=row.gaps[2:])
    with pytest.raises(ValueError, match="position 4: expected at least 1 where scored, found 0"):
        encode_row(short, SPEC, sample_ranks())


def test_an_id_kept_twice_is_refused() -> None:
    row = _row_of_one_document(SPEC)
    ids = row.kept_ids.copy()
    ids[7] = ids[6]
    with pytest.raises(ValueError, match=f"kept_ids: position 3: id {ids[6]} is kept twice"):
        encode_row(replace(row, kept_ids=ids), SPEC, sample_ranks())


def test_a_sketch_that_the_spec_does_not_have_is_refused() -> None:
    with pytest.raises(ValueError, match="sketch: the spec says 'none', but the row has one"):
        encode_row(sample_row(0, SPEC), sample_spec(with_sketch=False), sample_ranks())


def _row_of_one_document(spec: CacheSpec) -> Row:
    """Two kept ids at each position."""
    return replace(
        sample_row(0, spec),
        document_starts=_starts(),
        num_kept=np.full(12, 2, np.uint16),
        kept_ids=np.arange(24, dtype=np.int32),
        gaps=np.tile(np.array([0, 1.5], np.float32), 12),
    )
