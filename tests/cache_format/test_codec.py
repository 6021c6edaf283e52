"""A whole row to columns and back, and the rules that hold between columns."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cache_format.codec import Row, decode_row, encode_row
from cache_format.spec import CacheSpec
from tests.cache_format.sample_cache import assert_decoded, sample_row, sample_spec


def _round_trip(row: Row, spec: CacheSpec) -> Row:
    encoded = dict(encode_row(row, spec))
    starts = encoded.pop("document_starts")
    assert isinstance(starts, np.ndarray)
    return decode_row({k: v for k, v in encoded.items() if isinstance(v, bytes)}, starts, spec)


@given(st.integers(0, 2**32), st.booleans())
def test_round_trip(seed: int, with_sketch: bool) -> None:
    spec = sample_spec(with_sketch=with_sketch)
    row = sample_row(seed, spec)
    assert_decoded(_round_trip(row, spec), row, spec)


def test_a_row_without_scored_positions() -> None:
    spec = sample_spec()
    row = replace(
        sample_row(0, spec),
        document_starts=np.arange(1, 13, dtype=np.int32),
        num_kept=np.zeros(12, np.uint16),
        kept_ids=np.zeros(0, np.int32),
        gaps=np.zeros(0, np.float32),
    )
    assert not row.scored().any()
    assert_decoded(_round_trip(row, spec), row, spec)


def test_scored_means_the_next_token_is_of_the_same_document() -> None:
    row = replace(sample_row(0, sample_spec()), document_starts=np.array([1, 5, 12], np.int32))
    assert np.flatnonzero(~row.scored()).tolist() == [0, 4, 11]


def test_what_is_unspecified_may_be_anything() -> None:
    spec = sample_spec()
    row = sample_row(3, spec)
    scored = row.scored()
    assert not scored.all()
    assert row.sketch is not None
    sketch = np.where(scored[:, None], row.sketch, np.nan)
    tail = np.where(scored[:, None], row.tail_log_mass, np.nan)
    row = replace(
        row,
        next_logprob=np.where(scored, row.next_logprob, np.nan),
        tail_log_mass=tail,
        sketch=sketch,
    )
    assert_decoded(_round_trip(row, spec), row, spec)


def _starts(*values: int) -> np.ndarray:
    return np.array(values, np.int32)


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
        ({"gaps": np.zeros(1, np.float32)}, "gaps: expected shape"),
        ({"tail_log_mass": np.zeros((12, 2), np.float32)}, "tail_log_mass: expected shape"),
        ({"tail_log_mass": np.full((12, 3), np.nan)}, "tail_log_mass: position 0: .*found nan"),
        ({"next_logprob": np.zeros(11, np.float32)}, "next_logprob: expected shape"),
        ({"next_logprob": np.full(12, np.nan)}, "next_logprob: position 0: .*found nan"),
        ({"sketch": np.zeros((12, 7), np.float32)}, "sketch: expected shape"),
        ({"sketch": np.full((12, 8), np.inf)}, "sketch: position 0: .*finite"),
        ({"sketch": None}, "sketch: the spec says 'rademacher', but the row has none"),
    ],
)
def test_rows_that_break_a_rule_are_refused(changes: dict[str, Any], message: str) -> None:
    spec = sample_spec()
    row = _row_of_one_document(spec)
    encode_row(row, spec)
    with pytest.raises(ValueError, match=message):
        encode_row(replace(row, **changes), spec)


def test_a_scored_position_keeps_something() -> None:
    spec = sample_spec()
    row = _row_of_one_document(spec)
    num_kept = row.num_kept.copy()
    num_kept[4] = 0
    with pytest.raises(ValueError, match="position 4: expected at least 1 where scored, found 0"):
        encode_row(
            replace(row, num_kept=num_kept, kept_ids=row.kept_ids[2:], gaps=row.gaps[2:]), spec
        )


def test_an_id_kept_twice_is_refused() -> None:
    spec = sample_spec()
    row = _row_of_one_document(spec)
    ids = row.kept_ids.copy()
    ids[7] = ids[6]
    with pytest.raises(ValueError, match=f"kept_ids: position 3: id {ids[6]} is kept twice"):
        encode_row(replace(row, kept_ids=ids), spec)


def test_a_sketch_that_the_spec_does_not_have_is_refused() -> None:
    row = sample_row(0, sample_spec())
    with pytest.raises(ValueError, match="sketch: the spec says 'none', but the row has one"):
        encode_row(row, sample_spec(with_sketch=False))


def test_a_column_of_another_length_is_named() -> None:
    spec = sample_spec()
    encoded = {
        k: v for k, v in encode_row(sample_row(0, spec), spec).items() if isinstance(v, bytes)
    }
    for name in encoded:
        with pytest.raises(ValueError, match=name.removesuffix("_scale")):
            decode_row(encoded | {name: encoded[name] + b"\0"}, _starts(), spec)


def _row_of_one_document(spec: CacheSpec) -> Row:
    """Two kept ids at each position."""
    row = sample_row(0, spec)
    return replace(
        row,
        document_starts=_starts(),
        num_kept=np.full(12, 2, np.uint16),
        kept_ids=np.arange(24, dtype=np.int32),
        gaps=np.tile(np.array([0, 1.5], np.float32), 12),
    )
