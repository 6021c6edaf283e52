"""An Arrow IPC message as it must lie in a segment: alone, and not compressed.

Arrow allocates what a compressed buffer claims to hold, and passes over what follows the message
it was asked for. So both are looked at here before Arrow decodes anything.
"""

import pyarrow as pa
from pyarrow import ipc

_HEADER = 2  # slots of the flatbuffers tables Message and RecordBatch of Arrow's format/Message.fbs
_COMPRESSION = 3


def require_message(data: pa.Buffer, kind: str) -> None:
    """Raise ValueError unless ``data`` is exactly one message of ``kind``, without compression.

    ``kind`` is ``schema`` or ``record batch``.
    """
    reader = pa.BufferReader(data)
    try:
        message = ipc.read_message(reader)
    except (pa.ArrowException, OSError, EOFError) as error:
        raise ValueError(f"Arrow cannot read it: {error}") from error
    if message.type != kind:
        raise ValueError(f"expected an Arrow message of a {kind}, found one of a {message.type}")
    if reader.tell() != data.size:
        raise ValueError(
            f"expected one Arrow message of {data.size} bytes, found one of {reader.tell()}"
        )
    if kind == "record batch" and _is_compressed(message.metadata.to_pybytes()):
        raise ValueError("expected Arrow buffers that are not compressed, found compressed ones")


def _is_compressed(metadata: bytes) -> bool:
    """Whether the flatbuffer of a record batch's message says so."""
    message = _integer(metadata, 0, 4)
    header = _slot(metadata, message, _HEADER)
    batch = header + _integer(metadata, header, 4)
    return _slot(metadata, batch, _COMPRESSION) != batch


def _slot(metadata: bytes, table: int, number: int) -> int:
    """Where field ``number`` of a flatbuffers table lies; the table itself if it has none."""
    names = table - _integer(metadata, table, 4)
    index = 4 + 2 * number
    if index >= _integer(metadata, names, 2):
        return table
    return table + _integer(metadata, names + index, 2)


def _integer(metadata: bytes, offset: int, width: int) -> int:
    """4 bytes are signed, 2 are not; Arrow has not verified that all of them lie inside."""
    if not 0 <= offset <= len(metadata) - width:
        raise ValueError("expected an Arrow message of a record batch, found offsets outside of it")
    return int.from_bytes(metadata[offset : offset + width], "little", signed=width == 4)
