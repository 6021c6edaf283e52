"""Files that are streams of bytes: decompressed while they are read, and cut into lines.

Memory is bounded by a line, and a line by ``MAX_DOCUMENT_BYTES``, however far a small compressed
file expands.
"""

import io
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import pyarrow as pa

from stages.cache_teacher.corpus.formats.document_file import (
    MAX_DOCUMENT_BYTES,
    TOO_LONG,
    BadDocument,
    DataFile,
)
from stages.cache_teacher.corpus.open_file import open_binary

COMPRESSIONS = {".gz": "gzip", ".zst": "zstd"}
"""Codecs by the ending of a file's name."""
BLOCK_BYTES = 1 << 20
_FOREIGN = {
    b"\x1f\x8b": "gzip data; its name should end in .gz",
    b"\x28\xb5\x2f\xfd": "zstd data; its name should end in .zst",
    b"PAR1\x15": "Parquet; its name should end in .parquet",
    b"ARROW1\0\0": "an Arrow IPC file",
    b"PK\x03\x04": "a ZIP archive; unpack it",
    b"BZh91AY&SY": "bzip2 data; unpack it",
    b"\xfd7zXZ\0": "xz data; unpack it",
    b"\xff\xfe": "UTF-16 text; convert it to UTF-8",
    b"\xfe\xff": "UTF-16 text; convert it to UTF-8",
}


def compression_of(name: str) -> str | None:
    """The codec that the end of ``name`` tells of."""
    return COMPRESSIONS.get(Path(name).suffix.lower())


@contextmanager
def open_stream(file: DataFile) -> Iterator[IO[bytes]]:
    """The file's bytes, decompressed.

    Raises ValueError where they are not what the name says: here of another kind, and while they
    are read, damaged or cut short.
    """
    codec = compression_of(file.name)
    if codec is None:
        with open_binary(file.url) as stream:
            _refuse_foreign(file, stream.read(16))
            stream.seek(0)
            yield stream
        return
    try:
        with pa.OSFile(file.url) as raw:
            if raw.size() == 0:
                raise OSError("it is empty")
            with io.BufferedReader(pa.CompressedInputStream(raw, codec), BLOCK_BYTES) as stream:
                yield stream
    except (OSError, pa.ArrowException) as error:
        raise ValueError(
            f"{file.name}: damaged, cut short or not {codec}: {error}. Fetch it again or unpack it."
        ) from error


def iter_lines(stream: IO[bytes]) -> Generator[bytes | BadDocument, None, None]:
    """Lines without their line feed; one that is too long is passed over in blocks."""
    while line := stream.readline(MAX_DOCUMENT_BYTES + 1):
        if len(line) <= MAX_DOCUMENT_BYTES or line.endswith(b"\n"):
            yield line.removesuffix(b"\n")
            continue
        while (rest := stream.readline(BLOCK_BYTES)) and not rest.endswith(b"\n"):
            pass
        yield TOO_LONG


def _refuse_foreign(file: DataFile, first_bytes: bytes) -> None:
    for magic, description in _FOREIGN.items():
        if first_bytes.startswith(magic):
            raise ValueError(f"{file.name}: not what its name says: it holds {description}.")
