"""A whole row to columns and back, and the rules that hold between columns."""

from dataclasses import fields, replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cache_format.codec import columns
from cache_format.codec.row import KeptIds
from cache_format.codec.row_codec import Encoded, Row, decode_row, encode_row
from cache_format.coding import rans
from cache_format.coding.bits import decode_numbers, encode_numbers, split_length, with_length
from cache_format.metadata.spec import CacheSpec
from cache_format.metadata.spec_parts.sketch import SketchSpec
from cache_format.tables.shared_files import SharedFiles
from cache_format.tables.vocabulary_ranks import RankTable
from tests.support.sample_cache import (
    TARGETS,
    assert_decoded,
    by_position,
    drawn_targets,
    hidden_targets,
    sample_ranks,
    sample_row,
    sample_shared,
    sample_spec,
    sample_transform,
    sampled_targets,
    top_k_hidden_targets,
    top_k_targets,
    with_context,
)

SPEC = sample_spec()
RANKS = sample_ranks()
SHARED = sample_shared()
DTYPES = ("int8", "float16", "float32")


def _cells(row: Row, spec: CacheSpec, ranks: RankTable = RANKS) -> dict[str, bytes]:
    return _binary(encode_row(row, spec, SharedFiles(ranks=ranks)))


def _binary(encoded: Encoded) -> dict[str, bytes]:
    return {name: cell for name, cell in encoded.items() if isinstance(cell, bytes)}


def _round_trip(row: Row, spec: CacheSpec, ranks: RankTable = RANKS) -> Row:
    cells = _cells(row, spec, ranks)
    return decode_row(cells, row.document_starts, spec, SharedFiles(ranks=ranks))


def _changed(row: Row, **changes: Any) -> Row:
    """The row with other arrays, its own and those of its kept ids."""
    names = {field.name for field in fields(KeptIds)}
    of_kept = {name: array for name, array in changes.items() if name in names}
    of_row = {name: array for name, array in changes.items() if name not in names}
    return replace(row, kept_ids=replace(row.kept, **of_kept), **of_row)


@given(st.integers(0, 2**32), st.sampled_from([None, *DTYPES]), st.sampled_from([2, 104, 128, 255]))
def test_rows_round_trip_for_every_sketch_dtype_and_number_of_levels(
    seed: int, dtype: Any, num_levels: int
) -> None:
    targets = top_k_targets(num_levels=num_levels)
    spec = sample_spec(with_sketch=dtype is not None, targets=targets)
    if dtype is not None:
        spec = replace(spec, sketch=SketchSpec(kind="rademacher", dim=8, dtype=dtype))
    row = sample_row(seed, spec)
    assert_decoded(_round_trip(row, spec), row, spec)


@given(st.integers(0, 2**32), st.sampled_from([5, 50, 255]), st.sampled_from([1.0, 0.5, 1 / 3]))
def test_sample_counts_round_trip_exactly(seed: int, num_draws: int, node: float) -> None:
    targets = sampled_targets(num_draws=num_draws, inverse_temperature=node)
    spec = sample_spec(targets=targets)
    row = sample_row(seed, spec)
    found = _round_trip(row, spec)
    assert_decoded(found, row, spec)
    kept = found.kept
    assert kept.counts is not None
    for counts, gaps in zip(
        by_position(kept, kept.counts), by_position(kept, kept.gaps), strict=True
    ):
        mass = np.exp(-np.array([gaps[token_id] for token_id in counts]))
        shares = np.array(list(counts.values())) / num_draws
        np.testing.assert_allclose(mass / mass.sum() if counts else mass, shares, rtol=1e-6)


@given(st.integers(0, 2**32), st.sampled_from(["flat", "peaked", "ties"]))
def test_rows_that_keep_the_whole_vocabulary_have_no_tail(seed: int, shape: str) -> None:
    """No tail anywhere, be the distribution even, all on one id, or one of many equals."""
    spec = sample_spec(targets=top_k_targets(top_k=40))
    random = np.random.default_rng(seed)
    gaps = {
        "flat": np.zeros((12, 40)),
        "peaked": np.concatenate([np.zeros((12, 1)), np.full((12, 39), 900.0)], axis=1),
        "ties": np.sort(random.integers(0, 4, (12, 40)), axis=1),
    }[shape]
    gaps -= gaps[:, :1]
    row = _changed(
        _row_of_one_document(spec),
        num_ids=np.full(12, 40, np.uint16),
        ids=np.concatenate([random.permutation(40) for _ in range(12)]).astype(np.int32),
        gaps=gaps.reshape(-1).astype(np.float32),
        tail_log_mass=np.full((12, 3), -np.inf, np.float32),
    )
    found = _round_trip(row, spec)
    assert_decoded(found, row, spec)
    assert np.isneginf(found.kept.tail_log_mass).all()


@pytest.mark.parametrize("vocab_size", [1, 2, 3, 255, 256, 151_936, 2**24])
def test_rows_round_trip_at_any_vocabulary_size(vocab_size: int) -> None:
    random = np.random.default_rng(vocab_size)
    ranks = RankTable.by_weight(random.integers(0, 100, vocab_size))
    top_k = min(300, vocab_size)
    teacher = replace(SPEC.teacher, vocab_size=vocab_size, head_rows=vocab_size, eos_token_id=0)
    targets = top_k_targets(top_k=top_k)
    spec = sample_spec(teacher=teacher, targets=targets, ranks_sha256=ranks.sha256)
    for seed in range(2 if vocab_size > 2**10 else 9):
        row = sample_row(seed, spec)
        assert_decoded(_round_trip(row, spec, ranks), row, spec)


def test_ids_of_one_level_come_back_in_order_of_frequency() -> None:
    ranks = RANKS
    row = _changed(
        _row_of_one_document(SPEC),
        ids=np.tile(ranks.ids_by_rank[[9, 4]], 12),
        gaps=np.zeros(24, np.float32),
    )
    assert _round_trip(row, SPEC).kept.ids.tolist() == ranks.ids_by_rank[[4, 9]].tolist() * 12


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
    targets = top_k_targets(top_k=top_k, keep_mass=1.0, num_levels=128)
    teacher = replace(SPEC.teacher, vocab_size=vocab_size, head_rows=vocab_size)
    spec = sample_spec(
        with_sketch=False,
        sequence_length=num_positions,
        targets=targets,
        teacher=teacher,
        ranks_sha256=ranks.sha256,
    )
    gaps = _zipf_logits(random, num_positions, vocab_size)
    gaps = gaps[:, :1] - gaps
    nodes = np.array(targets.inverse_temperatures)
    tail = np.log(np.exp(-gaps[:, top_k:, None] * nodes).sum(axis=1))
    row = Row(
        token_ids=np.zeros(num_positions + 1, np.int32),
        document_starts=np.zeros(0, np.int32),
        kept_ids=KeptIds(
            num_ids=np.full(num_positions, top_k, np.uint16),
            ids=np.tile(np.arange(top_k, dtype=np.int32), num_positions),
            gaps=gaps[:, :top_k].reshape(-1).astype(np.float32),
            tail_log_mass=tail.astype(np.float32),
            next_logprob=np.full(num_positions, -1.0, np.float32),
        ),
    )
    found = _round_trip(row, spec, ranks).kept
    assert (found.ids != row.kept.ids).any()
    decoded_gaps = np.empty((num_positions, top_k))
    np.put_along_axis(
        decoded_gaps, found.ids.reshape(-1, top_k), found.gaps.reshape(-1, top_k), axis=1
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
    row = _changed(
        sample_row(0, SPEC),
        document_starts=np.arange(1, 13, dtype=np.int32),
        num_ids=np.zeros(12, np.uint16),
        ids=np.zeros(0, np.int32),
        gaps=np.zeros(0, np.float32),
    )
    assert not row.scored().any()
    assert_decoded(_round_trip(row, SPEC), row, SPEC)


def test_only_positions_whose_next_token_is_in_the_same_document_are_scored() -> None:
    row = _changed(sample_row(0, SPEC), document_starts=np.array([1, 5, 12], np.int32))
    assert np.flatnonzero(~row.scored()).tolist() == [0, 4, 11]


@given(st.integers(0, 2**32), st.sampled_from(sorted(TARGETS)))
def test_context_round_trips_with_every_kind_of_target(seed: int, kind: str) -> None:
    spec = sample_spec(targets=TARGETS[kind])
    shared = sample_shared(spec)
    row = sample_row(seed, spec)
    is_context = np.random.default_rng(seed).random(12) < 0.5
    row = with_context(row, is_context)
    assert not row.scored()[is_context].any()
    cells = _binary(encode_row(row, spec, shared))
    found = decode_row(cells, row.document_starts, spec, shared)
    assert_decoded(found, row, spec)
    if is_context.any():
        np.testing.assert_array_equal(found.is_context, is_context)
    else:
        assert found.is_context is None


def test_a_row_that_is_all_context_round_trips() -> None:
    row = with_context(sample_row(0, SPEC), np.ones(12, bool))
    assert not row.scored().any()
    found = _round_trip(row, SPEC)
    assert_decoded(found, row, SPEC)
    assert found.is_context is not None
    assert found.is_context.all()


def test_context_that_is_nowhere_is_stored_as_none() -> None:
    row = sample_row(0, SPEC)
    nowhere = replace(row, is_context=np.zeros(12, bool))
    assert _cells(nowhere, SPEC) == _cells(row, SPEC)
    assert _cells(row, SPEC)["context"] == b""
    assert _round_trip(nowhere, SPEC).is_context is None


def test_the_next_token_of_another_document_may_be_context_too() -> None:
    """Both say that a position is not scored; neither is taken for the other."""
    row = _changed(sample_row(0, SPEC), document_starts=np.array([5], np.int32))
    row = replace(row, is_context=np.arange(12) == 4)
    assert np.flatnonzero(~row.scored()).tolist() == [4]


def test_a_context_cell_that_kept_ids_contradict_is_refused() -> None:
    row = _row_of_one_document(SPEC)
    context = columns.encode_context(np.arange(12) == 3)
    with pytest.raises(ValueError, match=r"^num_kept: expected ids exactly where a position is"):
        decode_row(_cells(row, SPEC) | {"context": context}, row.document_starts, SPEC, SHARED)
    without = _cells(with_context(row, np.arange(12) == 3), SPEC) | {"context": b""}
    with pytest.raises(ValueError, match=r"^num_kept: expected ids exactly where a position is"):
        decode_row(without, row.document_starts, SPEC, SHARED)


@given(st.integers(0, 2**32), st.sampled_from(DTYPES), st.sampled_from(["each:1,2", "each:2"]))
def test_sketches_of_several_layers_round_trip(seed: int, dtype: Any, hidden_states: str) -> None:
    """Each layer of a position has a scale of its own, however far apart they lie."""
    sketch = SketchSpec(kind="rademacher", dim=8, dtype=dtype, hidden_states=hidden_states)
    spec = sample_spec(sketch=sketch)
    row = sample_row(seed, spec)
    assert row.sketch is not None
    assert row.sketch.shape == (12, spec.sketch.num_states, 8)
    row.sketch[:, -1] *= 1000
    assert_decoded(_round_trip(row, spec), row, spec)


def test_the_layers_of_a_sketch_are_stored_position_by_position() -> None:
    sketch = SketchSpec(kind="rademacher", dim=3, dtype="float32", hidden_states="each:1,2")
    spec = sample_spec(sketch=sketch)
    row = _row_of_one_document(spec)
    numbers = np.arange(12 * 2 * 3, dtype=np.float32).reshape(12, 2, 3)
    cells = _cells(replace(row, sketch=numbers), spec)
    assert cells["sketch"] == columns.encode_sketch(numbers.reshape(24, 3), "float32")[0]


def test_a_bad_sketch_of_several_layers_is_refused_by_its_position() -> None:
    sketch = SketchSpec(kind="rademacher", dim=8, hidden_states="each:1,2")
    spec = sample_spec(sketch=sketch)
    row = _row_of_one_document(spec)
    numbers = np.zeros((12, 2, 8), np.float32)
    numbers[7, 1, 0] = np.nan
    with pytest.raises(ValueError, match=r"^sketch: position 7: expected finite"):
        encode_row(replace(row, sketch=numbers), spec, SHARED)
    cells = _cells(replace(row, sketch=np.zeros((12, 2, 8), np.float32)), spec)
    one_layer = sample_spec(sketch=replace(sketch, hidden_states="each:1"))
    with pytest.raises(
        ValueError, match=r"^sketch: expected a frame of 96 bytes, found one of 192"
    ):
        decode_row(cells, row.document_starts, one_layer, SHARED)


def test_values_at_unscored_positions_may_be_anything() -> None:
    row = sample_row(3, SPEC)
    scored = row.scored()
    assert not scored.all()
    assert row.sketch is not None
    other = _changed(
        row,
        next_logprob=np.where(scored, row.kept.next_logprob, np.nan),
        tail_log_mass=np.where(scored[:, None], row.kept.tail_log_mass, np.nan),
        sketch=np.where(scored[:, None, None], row.sketch, np.nan),
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
        ({"num_ids": np.zeros(11, np.uint16)}, r"num_ids: expected shape \(12,\), found \(11,"),
        ({"document_starts": _starts(3)}, "num_kept: position 2: expected 0 where not scored"),
        ({"ids": np.zeros(1, np.int32)}, "^ids: expected shape"),
        ({"ids": np.full(24, 40, np.int32)}, "kept_ids: .*position 0: .*0 to 39, found 40"),
        ({"ids": np.full(24, -1, np.int32)}, "kept_ids: .*position 0: .*found -1"),
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
        ({"is_context": np.zeros(11, bool)}, r"is_context: expected shape \(12,\), found \(11,"),
        ({"is_context": np.zeros(12, np.uint8)}, "is_context: expected booleans, found uint8"),
        ({"is_context": np.arange(12) == 3}, "num_kept: position 3: expected 0 where not scored"),
        ({"sketch": np.zeros((12, 1, 7), np.float32)}, "sketch: expected shape"),
        ({"sketch": np.zeros((12, 8), np.float32)}, "sketch: expected shape"),
        ({"sketch": np.zeros((12, 2, 8), np.float32)}, "sketch: expected shape"),
        ({"sketch": np.full((12, 1, 8), np.inf)}, "sketch: position 0: .*finite"),
        ({"sketch": None}, "sketch: the spec says 'rademacher', but the row has none"),
    ],
)
def test_rows_that_break_a_rule_are_refused(changes: dict[str, Any], message: str) -> None:
    row = _row_of_one_document(SPEC)
    encode_row(row, SPEC, SHARED)
    with pytest.raises(ValueError, match=message):
        encode_row(_changed(row, **changes), SPEC, SHARED)


def test_decreasing_logit_gaps_are_refused() -> None:
    row = _changed(
        _row_of_one_document(SPEC),
        num_ids=np.array([3, *[2] * 11], np.uint16),
        ids=np.arange(25, dtype=np.int32),
        gaps=np.array([0, 2, 1, *[0, 1] * 11], np.float32),
    )
    with pytest.raises(
        ValueError, match=r"gaps: position 0: .*do not fall along the rank, found 1"
    ):
        encode_row(row, SPEC, SHARED)


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
    row = _changed(
        _row_of_one_document(spec),
        counts=np.tile(np.array([30, 20], np.uint16), 12),
        tail_log_mass=np.full((12, 1), -np.inf, np.float32),
    )
    assert_decoded(_round_trip(row, spec), row, spec)
    with pytest.raises(ValueError, match=message):
        encode_row(_changed(row, **changes), spec, SHARED)


def test_a_scored_position_without_kept_ids_is_refused() -> None:
    row = _row_of_one_document(SPEC)
    num_ids = row.kept.num_ids.copy()
    num_ids[4] = 0
    short = _changed(row, num_ids=num_ids, ids=row.kept.ids[2:], gaps=row.kept.gaps[2:])
    with pytest.raises(ValueError, match="position 4: expected at least 1 where scored, found 0"):
        encode_row(short, SPEC, SHARED)


def test_an_id_kept_twice_is_refused() -> None:
    row = _row_of_one_document(SPEC)
    ids = row.kept.ids.copy()
    ids[7] = ids[6]
    with pytest.raises(ValueError, match=f"kept_ids: position 3: id {ids[6]} is kept twice"):
        encode_row(_changed(row, ids=ids), SPEC, SHARED)


def test_a_row_without_kept_ids_is_refused() -> None:
    row = replace(sample_row(0, SPEC), kept_ids=None)
    with pytest.raises(ValueError, match="kept_ids: the spec says 'top_k', but the row has none"):
        encode_row(row, SPEC, SHARED)


_LARGEST = 32_767
HIDDEN = sample_spec(targets=hidden_targets())
HIDDEN_SHARED = sample_shared(HIDDEN)


def _hidden_cells(row: Row) -> dict[str, bytes]:
    return _binary(encode_row(row, HIDDEN, HIDDEN_SHARED))


def _decoded_hidden(cells: dict[str, bytes], row: Row) -> Row:
    return decode_row(cells, row.document_starts, HIDDEN, HIDDEN_SHARED)


@given(st.integers(0, 2**32), st.sampled_from([1, 30, 1000, _LARGEST]))
def test_rows_of_hidden_states_round_trip_exactly(seed: int, largest: int) -> None:
    row = sample_row(seed, HIDDEN)
    values = np.random.default_rng(seed).integers(-largest, largest, (12, 6), endpoint=True)
    row = replace(row, coefficients=values.astype(np.int16))
    found = _decoded_hidden(_hidden_cells(row), row)
    assert found.kept_ids is None
    assert_decoded(found, row, HIDDEN)


def test_coefficients_at_unscored_positions_may_be_anything() -> None:
    row = sample_row(3, HIDDEN)
    scored = row.scored()
    assert not scored.all()
    assert row.coefficients is not None
    other = np.where(scored[:, None], row.coefficients, -(2**15)).astype(np.int16)
    assert _hidden_cells(replace(row, coefficients=other)) == _hidden_cells(row)


def test_a_row_of_hidden_states_without_scored_positions_round_trips() -> None:
    row = replace(sample_row(0, HIDDEN), document_starts=np.arange(1, 13, dtype=np.int32))
    cells = _hidden_cells(row)
    nothing = with_length(encode_numbers(np.zeros(0, np.int64)))
    assert cells["hidden"] == nothing + nothing  # states, and excesses
    found = _decoded_hidden(cells, row)
    assert_decoded(found, row, HIDDEN)
    assert found.coefficients is not None
    assert not found.coefficients.any()


@pytest.mark.parametrize(
    ("coefficients", "message"),
    [
        (None, "coefficients: the spec says 'hidden', but the row has none"),
        (np.zeros((12, 5), np.int16), r"coefficients: expected shape \(12, 6\), found \(12, 5\)"),
        (np.zeros((11, 6), np.int16), r"coefficients: expected shape \(12, 6\), found \(11, 6\)"),
        (np.zeros((12, 6), np.int32), "coefficients: expected int16, found int32"),
        (np.full((12, 6), -(2**15), np.int16), "coefficients: expected .* at most ±32767"),
    ],
)
def test_coefficients_that_break_a_rule_are_refused(
    coefficients: np.ndarray | None, message: str
) -> None:
    row = replace(sample_row(0, HIDDEN), coefficients=coefficients)
    with pytest.raises(ValueError, match=message):
        encode_row(row, HIDDEN, HIDDEN_SHARED)


def test_kept_ids_and_coefficients_are_refused_where_the_kind_has_none() -> None:
    coefficients, kept_ids = np.zeros((12, 6), np.int16), sample_row(0, SPEC).kept_ids
    with pytest.raises(ValueError, match="coefficients: the spec says 'top_k', but the row has on"):
        encode_row(replace(sample_row(0, SPEC), coefficients=coefficients), SPEC, SHARED)
    with pytest.raises(ValueError, match="kept_ids: the spec says 'hidden', but the row has one"):
        encode_row(replace(sample_row(0, HIDDEN), kept_ids=kept_ids), HIDDEN, HIDDEN_SHARED)


def test_cells_of_kept_ids_and_states_are_those_of_either_kind() -> None:
    both = sample_spec(targets=top_k_hidden_targets())
    row = sample_row(0, both)
    cells = _binary(encode_row(row, both, HIDDEN_SHARED))
    ids = _binary(encode_row(replace(row, coefficients=None), sample_spec(), HIDDEN_SHARED))
    states = _hidden_cells(replace(row, kept_ids=None))
    assert cells == ids | states
    assert cells.keys() - ids.keys() == {"hidden"}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"kept_ids": None}, r"kept_ids: the spec says 'top_k\+hidden', but the row has none"),
        ({"coefficients": None}, r"coefficients: the spec says .*, but the row has none"),
        (
            {"coefficients": np.zeros((12, 5), np.int16)},
            r"coefficients: expected shape \(12, 6\), found \(12, 5\)",
        ),
    ],
)
def test_a_row_with_only_one_of_kept_ids_and_states_is_refused(
    changes: dict[str, Any], message: str
) -> None:
    both = sample_spec(targets=top_k_hidden_targets())
    with pytest.raises(ValueError, match=message):
        encode_row(replace(sample_row(0, both), **changes), both, HIDDEN_SHARED)


@pytest.mark.parametrize(("name", "counts"), [("draws", False), ("counts", True)])
def test_draws_and_counts_beside_states_are_refused(name: str, counts: bool) -> None:
    both = sample_spec(targets=top_k_hidden_targets())
    other = sample_spec(targets=sampled_targets() if counts else drawn_targets())
    row = sample_row(0, both)
    surplus = {name: getattr(sample_row(0, other).kept, name)}
    wrong = replace(row, kept_ids=replace(row.kept, **surplus))
    with pytest.raises(ValueError, match=f"{name}: the spec says .*hidden', but the row has one"):
        encode_row(wrong, both, HIDDEN_SHARED)


@pytest.mark.parametrize("column", ["kept", "tail_log_mass", "hidden"])
def test_a_damaged_cell_beside_states_is_refused_by_its_name(column: str) -> None:
    both = sample_spec(targets=top_k_hidden_targets())
    row = sample_row(0, both)
    cells = _binary(encode_row(row, both, HIDDEN_SHARED))
    with pytest.raises(ValueError, match=f"^{column}: "):
        decode_row(cells | {column: cells[column][:-1]}, row.document_starts, both, HIDDEN_SHARED)


def test_a_damaged_cell_of_coefficients_is_refused_by_its_name() -> None:
    row = replace(_row_without_documents(HIDDEN), coefficients=np.full((12, 6), _LARGEST, np.int16))
    cells = _hidden_cells(row)
    cell = cells["hidden"]
    ends, behind = split_length(cell)
    states = decode_numbers(ends, 12)
    code = sample_transform().code
    symbols, rest = rans.decode(cell, 12, code.tables)
    raw, excess = bytes(rest[:8]), bytes(rest[8:])  # 12 times 5 bits

    def with_states(states: np.ndarray) -> bytes:
        return with_length(encode_numbers(states)) + behind

    def with_rest(rest: bytes) -> bytes:
        return rans.encode(symbols, code.tables, rest)

    assert with_states(states) == with_rest(raw + excess) == cell
    for damaged, message in (
        (b"", "expected a length in 4 bytes, found 0"),
        (cell[:-1], "expected .* bytes"),
        (cell + b"\0", "expected zeros after .* bytes, found others"),
        (cell[:3], "expected a length in 4 bytes"),
        (with_states(states[:-1]), "expected a frame of 12 bytes, found one of 11"),
        (with_states(states >> 16), "expected states of 65536 or more"),
        (with_length(bytes(ends)), "expected more words|expected to end"),
        (with_rest(raw), "expected a length in 4 bytes, found 0"),
        (with_rest(raw[:7]), "expected 8 bytes of raw bits, found 7"),
        (with_rest(raw[:7] + b"\x1f" + excess), "expected zero bits after the last raw bits"),
        (with_rest(raw + excess + b"\0"), "expected .* bytes of raw bits"),
        (with_rest(raw + encode_numbers(np.zeros(71, int))), "expected a frame of 72"),
        (with_rest(raw + encode_numbers(np.full(72, 2**32 - 1))), "expected coefficients of at m"),
    ):
        with pytest.raises(ValueError, match=f"^hidden: {message}"):
            _decoded_hidden(cells | {"hidden": damaged}, row)


def test_a_context_cell_that_the_coefficients_contradict_is_refused() -> None:
    """The states of the lanes tell that the cell is not that of as many positions."""
    row = _row_without_documents(HIDDEN)
    context = columns.encode_context(np.arange(12) == 3)
    with pytest.raises(ValueError, match=r"^hidden: expected"):
        _decoded_hidden(_hidden_cells(row) | {"context": context}, row)


def _row_without_documents(spec: CacheSpec) -> Row:
    return replace(sample_row(0, spec), document_starts=_starts())


def test_a_sketch_that_the_spec_does_not_have_is_refused() -> None:
    with pytest.raises(ValueError, match="sketch: the spec says 'none', but the row has one"):
        encode_row(sample_row(0, SPEC), sample_spec(with_sketch=False), SHARED)


def _row_of_one_document(spec: CacheSpec) -> Row:
    """Two kept ids at each position."""
    return _changed(
        sample_row(0, spec),
        document_starts=_starts(),
        num_ids=np.full(12, 2, np.uint16),
        ids=np.arange(24, dtype=np.int32),
        gaps=np.tile(np.array([0, 1.5], np.float32), 12),
    )
