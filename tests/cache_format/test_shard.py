"""The bytes of a shard: its segments, what Arrow makes of them, and what is refused."""

import hashlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import ipc

from cache_format.codec.columns import encode_context
from cache_format.codec.row_codec import Row, encode_row
from cache_format.metadata.spec import CacheSpec
from cache_format.metadata.spec_parts.targets import TargetSpec
from cache_format.shard import EncodedShard, encode_shard, open_batch, row_of_batch
from tests.support.sample_cache import (
    TARGETS,
    assert_decoded,
    drawn_targets,
    hidden_targets,
    sample_row,
    sample_shared,
    sample_spec,
    sampled_targets,
    top_k_hidden_targets,
    top_k_targets,
    with_context,
)

SPEC = sample_spec()
PLAIN_SPEC = sample_spec(with_sketch=False)
SHARED = sample_shared()
ROWS = [sample_row(seed, SPEC) for seed in range(5)]
COLUMNS = [
    *("token_ids", "document_starts", "context"),
    *("num_kept", "kept", "tail_log_mass", "next_logprob"),
]


def _shard(spec: CacheSpec = SPEC, unit: int = 1) -> EncodedShard:
    return encode_shard([sample_row(seed, spec) for seed in range(5)], spec, SHARED, unit)


def _parts(shard: EncodedShard) -> list[bytes]:
    data = shard.data.to_pybytes()
    return [data[segment.offset :][: segment.length] for segment in shard.segments]


def _open(schema: bytes, batch: bytes, num_absent: int = 0, unit: int = 1) -> pa.RecordBatch:
    return open_batch(schema, batch, num_absent, unit, SPEC)


@pytest.mark.parametrize(("spec", "num"), [(SPEC, 1 + 2 * 3), (PLAIN_SPEC, 1 + 3)])
def test_segments_are_contiguous_from_the_magic_on(spec: CacheSpec, num: int) -> None:
    shard = _shard(spec)
    data = shard.data.to_pybytes()
    assert data[:8] == b"ARROW1\0\0"
    assert data[-6:] == b"ARROW1"
    assert len(shard.segments) == num
    end = 8
    for segment in shard.segments:
        assert segment.offset == end
        end += segment.length
        assert hashlib.sha256(data[segment.offset : end]).hexdigest() == segment.sha256
    assert data[end : end + 8] == b"\xff\xff\xff\xff\0\0\0\0"


def test_a_sketch_segment_holds_exactly_the_sketch() -> None:
    table = _table()
    _, targets, sketch, *_ = _parts(_shard())
    for column in table.column_names:
        for row in range(2):
            cell = table.column(column)[row].as_py()
            if isinstance(cell, bytes) and cell:
                assert (cell in sketch) == (column in ("sketch", "sketch_scale"))
                assert (cell in targets) == (column not in ("sketch", "sketch_scale"))


def test_any_arrow_reader_sees_the_columns() -> None:
    with ipc.open_file(pa.BufferReader(_shard().data)) as file:
        table = file.read_all()
        assert [file.get_batch(i).num_rows for i in range(file.num_record_batches)] == [2, 2, 1]
    assert table.column_names == [*COLUMNS, "sketch", "sketch_scale"]
    assert table.schema.metadata == {
        b"format_version": b"2.0",
        b"cache_id": SPEC.cache_id.encode(),
        b"unit": b"1",
    }
    for index, row in enumerate(ROWS):
        for name, value in encode_row(row, SPEC, SHARED).items():
            found = table.column(name)[index].as_py()
            assert found == (value.tolist() if isinstance(value, np.ndarray) else value)


def test_the_same_rows_give_the_same_bytes() -> None:
    first, second = _shard(), _shard()
    assert first.data.equals(second.data)
    assert first == second
    assert first.sha256 == hashlib.sha256(first.data).hexdigest()
    assert _shard(unit=2).sha256 != first.sha256


def test_a_shard_without_rows_is_valid() -> None:
    shard = encode_shard([], SPEC, SHARED, 1)
    assert (shard.num_rows, shard.num_tokens, len(shard.segments)) == (0, 0, 1)
    assert shard.statistics.num_scored == 0
    assert shard.statistics.sums == {"num_kept": 0.0, "kept_mass": 0.0, "next_logprob": 0.0}
    assert set(shard.statistics.column_bytes.values()) == {0}


def _without_a_number(row: Row) -> Row:
    next_logprob = np.full(12, np.nan, np.float32)
    return replace(row, kept_ids=replace(row.kept, next_logprob=next_logprob))


def test_a_row_that_breaks_a_rule_is_named() -> None:
    rows = [ROWS[0], _without_a_number(ROWS[1])]
    with pytest.raises(ValueError, match="row 1: next_logprob: position"):
        encode_shard(rows, SPEC, SHARED, 1)


@pytest.mark.parametrize("num_threads", [1, 3])
def test_rows_encoded_in_threads_give_the_same_bytes(num_threads: int) -> None:
    for targets in TARGETS.values():
        spec = replace(SPEC, targets=targets)
        rows, shared = [sample_row(seed, spec) for seed in range(30)], sample_shared(spec)
        with ThreadPoolExecutor(num_threads) as pool:
            found = encode_shard(iter(rows), spec, shared, 1, pool=pool)
        serial = encode_shard(rows, spec, shared, 1)
        assert found.data.equals(serial.data)
        assert found == serial


def test_a_row_that_breaks_a_rule_is_named_in_threads_too() -> None:
    wrong = _without_a_number(ROWS[1])
    rows = [*ROWS[:3], wrong, *[ROWS[0]] * 50, wrong]
    taken = 0

    def counted() -> Iterator[Row]:
        nonlocal taken
        for row in rows:
            taken += 1
            yield row

    with (
        ThreadPoolExecutor(2) as pool,
        pytest.raises(ValueError, match="row 3: next_logprob: position"),
    ):
        encode_shard(counted(), SPEC, SHARED, 1, pool=pool)
    assert taken < 25


def test_shard_statistics_count_tail_samples() -> None:
    spec = replace(SPEC, targets=drawn_targets())
    rows = [sample_row(seed, spec) for seed in range(5)]
    statistics = encode_shard(rows, spec, SHARED, 1).statistics
    num_drawn = sum(len(row.kept.draws.ids) for row in rows if row.kept.draws)
    assert statistics.sums["num_drawn"] == num_drawn > 0
    assert statistics.column_bytes["drawn"] == sum(
        len(encode_row(row, spec, SHARED)["drawn"]) for row in rows
    )
    assert encode_shard([], spec, SHARED, 1).statistics.sums["num_drawn"] == 0
    assert "num_drawn" not in _shard().statistics.sums


def test_tail_samples_are_stored_before_the_sketch() -> None:
    spec = replace(SPEC, targets=drawn_targets())
    rows = [sample_row(seed, spec) for seed in range(2)]
    shard = encode_shard(rows, spec, SHARED, 1)
    with ipc.open_file(pa.BufferReader(shard.data)) as file:
        assert file.schema.names == [*COLUMNS, "drawn", "sketch", "sketch_scale"]
        assert file.schema.metadata[b"format_version"] == b"2.0"
    schema, targets, sketch = _parts(shard)
    opened = open_batch(schema, targets, len(sketch), 1, spec)
    assert_decoded(row_of_batch(opened, 1, spec, SHARED), replace(rows[1], sketch=None), spec)


def test_samples_have_no_column_of_a_tail() -> None:
    shard = _shard(replace(SPEC, targets=sampled_targets()))
    with ipc.open_file(pa.BufferReader(shard.data)) as file:
        names = [name for name in COLUMNS if name != "tail_log_mass"]
        assert file.schema.names == [*names, "sketch", "sketch_scale"]


def test_shards_of_hidden_states_have_one_column_of_targets() -> None:
    spec = replace(SPEC, targets=hidden_targets())
    shared, rows = sample_shared(spec), [sample_row(seed, spec) for seed in range(2)]
    shard = encode_shard(rows, spec, shared, 1)
    with ipc.open_file(pa.BufferReader(shard.data)) as file:
        assert file.schema.names == [*COLUMNS[:3], "hidden", "sketch", "sketch_scale"]
    cells = [encode_row(row, spec, shared)["hidden"] for row in rows]
    assert shard.statistics.column_bytes["hidden"] == sum(map(len, cells))
    coefficients = [row.coefficients[row.scored()] for row in rows if row.coefficients is not None]
    num_nonzero = sum(np.count_nonzero(values) for values in coefficients)
    assert shard.statistics.sums == {"num_nonzero": num_nonzero}
    assert encode_shard([], spec, shared, 1).statistics.sums == {"num_nonzero": 0}
    schema, targets, sketch = _parts(shard)
    opened = open_batch(schema, targets, len(sketch), 1, spec)
    assert_decoded(row_of_batch(opened, 1, spec, shared), replace(rows[1], sketch=None), spec)


def test_shards_of_kept_ids_and_hidden_states_have_the_columns_and_sums_of_both() -> None:
    spec = replace(SPEC, targets=top_k_hidden_targets())
    shared, rows = sample_shared(spec), [sample_row(seed, spec) for seed in range(2)]
    shard = encode_shard(rows, spec, shared, 1)
    with ipc.open_file(pa.BufferReader(shard.data)) as file:
        assert file.schema.names == [*COLUMNS, "hidden", "sketch", "sketch_scale"]
    for targets in (top_k_targets(), hidden_targets()):
        of_kind = replace(spec, targets=targets)
        alone = encode_shard([_only(row, of_kind) for row in rows], of_kind, shared, 1)
        assert alone.statistics.sums.items() <= shard.statistics.sums.items()
        assert alone.statistics.column_bytes.items() <= shard.statistics.column_bytes.items()
    assert shard.statistics.sums.keys() == {
        *("num_kept", "kept_mass", "next_logprob", "num_nonzero"),
    }


def _only(row: Row, spec: CacheSpec) -> Row:
    """A row without what the kind of ``spec`` does not store."""
    if spec.targets.hidden is None:
        return replace(row, coefficients=None)
    return replace(row, kept_ids=None)


@pytest.mark.parametrize("kind", TARGETS)
def test_shards_hold_the_context_of_their_rows(kind: str) -> None:
    layers = replace(SPEC.sketch, hidden_states="each:1,2")
    spec = replace(SPEC, sketch=layers, targets=TARGETS[kind])
    shared = sample_shared(spec)
    rows = [sample_row(seed, spec) for seed in range(2)]
    rows[1] = with_context(rows[1], np.arange(12) < 4)
    shard = encode_shard(rows, spec, shared, 1)
    assert shard.statistics.num_scored == sum(int(row.scored().sum()) for row in rows)
    assert shard.statistics.column_bytes["context"] > 0
    schema, targets, sketch = _parts(shard)
    opened = open_batch(schema, targets + sketch, 0, 1, spec)
    assert opened.column("context")[0].as_py() == b""
    for index, row in enumerate(rows):
        found = row_of_batch(opened, index, spec, shared)
        assert_decoded(found, row, spec)
        np.testing.assert_array_equal(found.is_context, row.is_context)
        assert found.sketch is not None
        assert found.sketch.shape == (12, 2, 8)


def test_a_shard_lacking_the_tail_samples_of_its_spec_is_refused() -> None:
    schema, targets, sketch, *_ = _parts(_shard())
    spec = replace(SPEC, targets=drawn_targets())
    data = schema.replace(SPEC.cache_id.encode(), spec.cache_id.encode())
    with pytest.raises(ValueError, match="column drawn: expected binary, found nothing"):
        open_batch(data, targets + sketch, 0, 1, spec)


@pytest.mark.parametrize("other", [hidden_targets(), top_k_hidden_targets()])
def test_a_shard_lacking_the_hidden_states_of_its_spec_is_refused(other: TargetSpec) -> None:
    schema, targets, sketch, *_ = _parts(_shard())
    spec = replace(SPEC, targets=other)
    data = schema.replace(SPEC.cache_id.encode(), spec.cache_id.encode())
    with pytest.raises(ValueError, match="column hidden: expected binary, found nothing"):
        open_batch(data, targets + sketch, 0, 1, spec)


@pytest.mark.parametrize("with_sketch", [True, False])
def test_a_batch_is_opened_from_its_segments(with_sketch: bool) -> None:
    schema, targets, sketch, *_ = _parts(_shard())
    batch, num_absent = (targets + sketch, 0) if with_sketch else (targets, len(sketch))
    opened = _open(schema, batch, num_absent)
    row = row_of_batch(opened, 1, SPEC, SHARED)
    assert opened.schema.names == COLUMNS + (["sketch", "sketch_scale"] if with_sketch else [])
    assert_decoded(row, ROWS[1] if with_sketch else replace(ROWS[1], sketch=None), SPEC)


def _table() -> pa.Table:
    with ipc.open_file(pa.BufferReader(_shard().data)) as file:
        return file.read_all()


def _rewritten(table: pa.Table, compression: str | None = None) -> tuple[bytes, bytes]:
    """The schema's message and the first record batch's of two rows."""
    sink = pa.BufferOutputStream()
    options = ipc.IpcWriteOptions(compression=compression)
    with ipc.new_stream(sink, table.schema, options=options) as writer:
        writer.write_table(table.combine_chunks(), max_chunksize=2)
    data = sink.getvalue()
    reader = pa.BufferReader(data)
    ends = []
    for _ in range(2):
        ipc.read_message(reader)
        ends.append(reader.tell())
    raw = data.to_pybytes()
    return raw[: ends[0]], raw[ends[0] : ends[1]]


def _with(table: pa.Table, name: str, column: pa.Array) -> pa.Table:
    return table.set_column(table.column_names.index(name), name, column)


@pytest.mark.parametrize("extra", [pa.array([{"a": 1}] * 5), pa.nulls(5), pa.array(["a"] * 5)])
def test_extra_columns_and_column_order_do_not_matter(extra: pa.Array) -> None:
    table = _table().append_column("surprise", extra)
    table = table.select(table.schema.names[::-1])
    opened = _open(*_rewritten(table))
    assert "surprise" not in opened.schema.names
    assert_decoded(row_of_batch(opened, 0, SPEC, SHARED), ROWS[0], SPEC)


def test_a_shard_of_another_unit_or_cache_is_refused() -> None:
    schema, targets, sketch, *_ = _parts(_shard())
    with pytest.raises(ValueError, match=r"says unit 1, expected 2"):
        _open(schema, targets + sketch, unit=2)
    with pytest.raises(ValueError, match=r"says cache_id .* expected"):
        open_batch(schema, targets + sketch, 0, 1, sample_spec(seed=8))
    with pytest.raises(ValueError, match="says cache_id nothing"):
        _open(*_rewritten(_table().replace_schema_metadata(None)))


def test_missing_or_mistyped_columns_are_refused() -> None:
    table = _table()
    with pytest.raises(ValueError, match="column kept: expected binary, found nothing"):
        _open(*_rewritten(table.drop_columns(["kept"])))
    twice = table.append_column("kept", table.column("kept"))
    with pytest.raises(ValueError, match="column kept: expected binary, found nothing"):
        _open(*_rewritten(twice))
    for column in (pa.array([1] * 5), pa.array([b"1"] * 5, pa.large_binary()), pa.nulls(5)):
        with pytest.raises(ValueError, match=f"column kept: expected binary, found {column.type}"):
            _open(*_rewritten(_with(table, "kept", column)))


@pytest.mark.parametrize("name", ["kept", "sketch_scale"])
def test_null_cells_are_refused(name: str) -> None:
    cells = _table().column(name).to_pylist()
    column = pa.array([cells[0], None, *cells[2:]], pa.binary())
    with pytest.raises(ValueError, match=f"column {name}: expected no nulls"):
        _open(*_rewritten(_with(_table(), name, column)))


@pytest.mark.parametrize("lists", [[[1], None], [[1, None], []]])
def test_null_document_starts_are_refused(lists: list[Any]) -> None:
    column = pa.array([*lists, [], [], []], pa.list_(pa.int32()))
    with pytest.raises(ValueError, match="column document_starts: expected no nulls"):
        _open(*_rewritten(_with(_table(), "document_starts", column)))


def test_buffers_compressed_by_arrow_are_refused_unread() -> None:
    bomb = pa.array([bytes(2**28)] + [b""] * 4)
    schema, batch = _rewritten(_with(_table(), "kept", bomb), "zstd")
    assert len(batch) < 2**16
    allocated = pa.total_allocated_bytes()
    with pytest.raises(ValueError, match="not compressed"):
        _open(schema, batch)
    assert pa.total_allocated_bytes() < allocated + 2**20


@pytest.mark.parametrize("number", [2**30, -1])
def test_a_list_with_an_excessive_claimed_length_is_refused(number: int) -> None:
    column = pa.array([[3], [], [], [], []], pa.list_(pa.int32()))
    schema, batch = _rewritten(_with(_table(), "document_starts", column))
    offsets = np.array([0, 1, 1], np.int32).tobytes()
    assert batch.count(offsets) == 1
    other = np.array([0, 1, number], np.int32).tobytes()
    with pytest.raises(ValueError, match="Arrow cannot read it"):
        _open(schema, batch.replace(offsets, other))


def test_bytes_other_than_a_schema_and_a_batch_are_refused() -> None:
    schema, targets, sketch, *rest = _parts(_shard())
    batch = targets + sketch
    for pair in (
        (b"no", batch),
        (schema, b"no"),
        (schema, b""),
        (schema, schema),
        (batch, batch),
        (schema + batch, batch),
        (schema, sketch + targets),
        (schema, batch + rest[0] + rest[1]),
    ):
        with pytest.raises(ValueError, match=r"Arrow cannot read it|Arrow message"):
            _open(*pair)


def test_every_truncation_of_a_batch_is_refused() -> None:
    schema, targets, sketch, *_ = _parts(_shard())
    whole = targets + sketch
    for length in range(len(whole)):
        with pytest.raises(ValueError, match=r"Arrow cannot read it|Arrow message"):
            _open(schema, whole[:length])
    for length in range(len(schema)):
        with pytest.raises(ValueError, match=r"Arrow cannot read it|Arrow message"):
            _open(schema[:length], whole)


def test_cells_of_another_column_are_refused() -> None:
    """All are frames of a known size, so hardly any fits where another belongs."""
    table = _table()
    names = ["token_ids", "context", "kept", "tail_log_mass", "sketch", "sketch_scale"]
    for name in names:
        for other in names:
            if name != other:
                opened = _open(*_rewritten(_with(table, name, table.column(other))))
                with pytest.raises(ValueError, match=name.removesuffix("_scale")):
                    row_of_batch(opened, 0, SPEC, SHARED)


def _row_with(changes: dict[str, bytes]) -> Row:
    table = _table()
    for name, cell in changes.items():
        table = _with(table, name, pa.array([cell] * 5))
    return row_of_batch(_open(*_rewritten(table)), 0, SPEC, SHARED)


def test_a_context_cell_of_other_bytes_is_refused() -> None:
    for wrong in (b"\0", b"\xff" * 9, encode_context(np.ones(24, bool))):
        with pytest.raises(ValueError, match=r"^context: "):
            _row_with({"context": wrong})
    first_scored = np.arange(12) == np.argmax(ROWS[0].scored())
    with pytest.raises(ValueError, match=r"^num_kept: expected ids exactly where"):
        _row_with({"context": encode_context(first_scored)})


@pytest.mark.parametrize("name", ["token_ids", "num_kept", "kept", "tail_log_mass", "next_logprob"])
def test_every_truncation_of_a_cell_is_refused(name: str) -> None:
    cell = _table().column(name)[0].as_py()
    assert_decoded(_row_with({name: cell}), ROWS[0], SPEC)
    for wrong in [cell + b"\0", *(cell[:length] for length in range(len(cell)))]:
        with pytest.raises(ValueError, match=f"{name}: "):
            _row_with({name: wrong})
