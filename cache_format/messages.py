"""An Arrow IPC message as it must lie in a segment: alone, and not compressed.

Arrow allocates what a compressed buffer claims to hold, and passes over what follows the message
it was asked for. So both are looked at here before Arrow decodes anything. Called by the shard's
reader.
"""

import struct

import pyarrow as pa
from pyarrow import ipc

_HEADER = 2  # slots of the flatbuffers tables Message and RecordBatch of Arrow's format/Message.fbs
_COMPRESSION = 3
_LENGTH = struct.Struct("<i")
_OFFSET = struct.Struct("<H")


def require_message(data: pa.Buffer, kind: str) -> None:
    """Raise ValueError unless ``data`` is exactly one message of ``kind``, without compression.

    ``kind`` is ``schema`` or ``record batch``.
    """
    reader = pa.BufferReader(data)
    message = ipc.read_message(reader)
    if message.type != kind:
        raise ValueError(f"expected an Arrow message of a {kind}, found one of a {message.type}")
    if reader.tell() != data.size:
        raise ValueError(
            f"expected one Arrow message of {data.size} bytes, found one of {reader.tell()}"
        )
    if kind == "record batch" and _is_compressed(message.metadata.to_pybytes()):
        raise ValueError("expected Arrow buffers that are not compressed, found compressed ones")


def _is_compressed(metadata: bytes) -> bool:
    """Whether a record batch's message says so; Arrow has verified that all offsets lie inside."""
    message: int = _LENGTH.unpack_from(metadata)[0]
    at = _slot(metadata, message, _HEADER)
    batch: int = at + _LENGTH.unpack_from(metadata, at)[0]
    return _slot(metadata, batch, _COMPRESSION) != batch


def _slot(metadata: bytes, table: int, number: int) -> int:
    """Where field ``number`` of a flatbuffers table lies; the table itself if it has none."""
    names: int = table - _LENGTH.unpack_from(metadata, table)[0]
    index = 4 + 2 * number
    if index >= _OFFSET.unpack_from(metadata, names)[0]:
        return table
    offset: int = _OFFSET.unpack_from(metadata, names + index)[0]
    return table + offset
