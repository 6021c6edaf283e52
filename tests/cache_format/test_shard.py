"""The bytes of a shard: its blocks, what Arrow makes of them, and what is refused."""

import hashlib

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import ipc

from cache_format.codec import encode_row
from cache_format.shard import encode_shard, open_batch, row_of_batch
from tests.cache_format.sample_cache import assert_decoded, sample_row, sample_spec

SPEC = sample_spec()
ROWS = [sample_row(seed, SPEC) for seed in range(5)]


def test_blocks_lie_behind_one_another_from_the_magic_on() -> None:
    shard = encode_shard(ROWS, SPEC, 1)
    data = shard.data.to_pybytes()
    assert data[:8] == b"ARROW1\0\0"
    assert data[-6:] == b"ARROW1"
    assert len(shard.blocks) == 1 + 3
    end = 8
    for block in shard.blocks:
        assert block.offset == end
        end += block.length
        assert hashlib.sha256(data[block.offset : end]).hexdigest() == block.sha256
    assert data[end : end + 8] == b"\xff\xff\xff\xff\0\0\0\0"


def test_any_arrow_reader_sees_the_columns() -> None:
    with ipc.open_file(pa.BufferReader(encode_shard(ROWS, SPEC, 1).data)) as file:
        table = file.read_all()
        assert [file.get_batch(i).num_rows for i in range(file.num_record_batches)] == [2, 2, 1]
    assert table.schema.metadata == {
        b"format_version": b"1.0",
        b"cache_id": SPEC.cache_id.encode(),
        b"unit": b"1",
    }
    for index, row in enumerate(ROWS):
        for name, value in encode_row(row, SPEC).items():
            found = table.column(name)[index].as_py()
            assert found == (value.tolist() if isinstance(value, np.ndarray) else value)


def test_the_same_rows_give_the_same_bytes() -> None:
    first, second = (encode_shard(iter(ROWS), SPEC, 1) for _ in range(2))
    assert first.data.equals(second.data)
    assert first == second
    assert first.sha256 == hashlib.sha256(first.data).hexdigest()
    assert encode_shard(ROWS, SPEC, 2).sha256 != first.sha256


def test_no_rows() -> None:
    shard = encode_shard([], SPEC, 1)
    assert (shard.num_rows, shard.num_tokens, len(shard.blocks)) == (0, 0, 1)
    assert shard.statistics.sum_kept_mass == 0.0
    assert set(shard.statistics.column_bytes.values()) == {0}


def _blocks(data: pa.Buffer) -> tuple[bytes, bytes]:
    """The schema's message and the first record batch's."""
    reader = pa.BufferReader(data)
    reader.seek(8)
    ends = [8]
    for _ in range(2):
        ipc.read_message(reader)
        ends.append(reader.tell())
    raw = data.to_pybytes()
    return raw[ends[0] : ends[1]], raw[ends[1] : ends[2]]


def _rewritten(table: pa.Table) -> tuple[bytes, bytes]:
    sink = pa.BufferOutputStream()
    with ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table, max_chunksize=2)
    return _blocks(sink.getvalue())


def _table() -> pa.Table:
    with ipc.open_file(pa.BufferReader(encode_shard(ROWS, SPEC, 1).data)) as file:
        return file.read_all()


@pytest.mark.parametrize("with_sketch", [True, False])
def test_a_batch_from_two_blocks(with_sketch: bool) -> None:
    schema, batch = _blocks(encode_shard(ROWS, SPEC, 1).data)
    opened = open_batch(schema, batch, 1, SPEC, with_sketch=with_sketch)
    row = row_of_batch(opened, 1, SPEC)
    assert (row.sketch is not None) == with_sketch
    assert ("sketch_scale" in opened.schema.names) == with_sketch
    if with_sketch:
        assert_decoded(row, ROWS[1], SPEC)


def test_added_columns_and_another_order_do_not_matter() -> None:
    table = _table().append_column("surprise", pa.array([{"a": 1}] * 5))
    table = table.select(table.schema.names[::-1])
    opened = open_batch(*_rewritten(table), 1, SPEC, with_sketch=True)
    assert_decoded(row_of_batch(opened, 0, SPEC), ROWS[0], SPEC)


def test_uncompressed_batches_are_read() -> None:
    opened = open_batch(*_rewritten(_table()), 1, SPEC, with_sketch=True)
    assert_decoded(row_of_batch(opened, 1, SPEC), ROWS[1], SPEC)


def test_what_is_not_of_this_cache() -> None:
    schema, batch = _blocks(encode_shard(ROWS, SPEC, 1).data)
    with pytest.raises(ValueError, match="says unit 1, expected 2"):
        open_batch(schema, batch, 2, SPEC, with_sketch=True)
    with pytest.raises(ValueError, match=r"says cache_id .* expected"):
        open_batch(schema, batch, 1, sample_spec(seed=8), with_sketch=True)
    plain = _table().replace_schema_metadata(None)
    with pytest.raises(ValueError, match="says cache_id nothing"):
        open_batch(*_rewritten(plain), 1, SPEC, with_sketch=True)


def test_columns_that_are_missing_or_of_another_type() -> None:
    table = _table()
    with pytest.raises(ValueError, match="column gaps: expected binary, found nothing"):
        open_batch(*_rewritten(table.drop_columns(["gaps"])), 1, SPEC, with_sketch=True)
    other = table.set_column(0, "token_ids", pa.array([1] * 5))
    with pytest.raises(ValueError, match="column token_ids: expected binary, found int64"):
        open_batch(*_rewritten(other), 1, SPEC, with_sketch=True)


def test_bytes_that_are_not_arrow() -> None:
    schema, batch = _blocks(encode_shard(ROWS, SPEC, 1).data)
    for pair in ((b"no", batch), (schema, b"no"), (schema, b""), (schema, schema), (batch, batch)):
        with pytest.raises(ValueError, match="Arrow cannot read it"):
            open_batch(*pair, 1, SPEC, with_sketch=True)
