"""One Arrow message of the right kind, not compressed; everything else is refused."""

import pyarrow as pa
import pytest
from pyarrow import ipc

from cache_format.codec.arrow_checks import require_message

SCHEMA = pa.schema([pa.field("cell", pa.binary())])
BATCH = pa.record_batch([pa.array([bytes(1000), b"b"])], schema=SCHEMA)


def _messages(compression: str | None = None) -> tuple[bytes, bytes]:
    """The schema's message and the record batch's."""
    sink = pa.BufferOutputStream()
    with ipc.new_stream(sink, SCHEMA, options=ipc.IpcWriteOptions(compression=compression)) as file:
        file.write_batch(BATCH)
    reader = pa.BufferReader(sink.getvalue())
    ipc.read_message(reader)
    end = reader.tell()
    ipc.read_message(reader)
    data = sink.getvalue().to_pybytes()
    return data[:end], data[end : reader.tell()]


def _require(data: bytes, kind: str) -> None:
    require_message(pa.py_buffer(data), kind)


def test_well_formed_arrow_messages_are_accepted() -> None:
    schema, batch = _messages()
    _require(schema, "schema")
    _require(batch, "record batch")


@pytest.mark.parametrize("compression", ["zstd", "lz4"])
def test_compressed_buffers_are_refused(compression: str) -> None:
    """A few bytes could claim, and hold, gigabytes."""
    with pytest.raises(ValueError, match="not compressed, found compressed"):
        _require(_messages(compression)[1], "record batch")


def test_a_message_of_the_wrong_kind_is_refused() -> None:
    schema, batch = _messages()
    with pytest.raises(ValueError, match="of a schema, found one of a record batch"):
        _require(batch, "schema")
    with pytest.raises(ValueError, match="of a record batch, found one of a schema"):
        _require(schema, "record batch")


def test_more_than_one_message_is_refused() -> None:
    schema, batch = _messages()
    for data, kind in ((schema + batch, "schema"), (batch + batch, "record batch")):
        with pytest.raises(ValueError, match=r"expected one Arrow message of \d+ bytes, found one"):
            _require(data, kind)


def test_every_truncated_message_is_refused() -> None:
    _, batch = _messages()
    for length in range(len(batch)):
        with pytest.raises(ValueError, match=r"Arrow cannot read it|found one of"):
            _require(batch[:length], "record batch")


def test_offsets_outside_the_buffer_are_refused() -> None:
    """Each four bytes of a record batch's metadata in turn, far away in both directions."""
    _, batch = _messages()
    length = int.from_bytes(batch[4:8], "little")
    refused = 0
    for at in range(8, 8 + length, 4):
        for offset in (b"\xff\xff\xff\x7f", b"\0\0\0\x80"):
            try:
                _require(batch[:at] + offset + batch[at + 4 :], "record batch")
            except ValueError:
                refused += 1
    assert refused > 20
