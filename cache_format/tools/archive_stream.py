"""The bytes of a ``.tar.zst``: one header, content and padding after the other, in one zstd frame.

Written by ``write_archive`` and read, distrusting everything, by ``ArchiveReader``. Neither knows
what the files mean; ``archive.py`` does.

``tarfile`` and ``zstandard`` decode the headers and the blocks, but the loops around them are here.
``tarfile``'s own would follow extended headers of any size, links and devices, and ``zstandard``'s
stream ends as quietly where a file was cut off as where it was whole. Here the reader is told which
file must come next, memory is bounded by one block of 128 KiB, and the frame must end with its
checksum.
"""

import tarfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, NamedTuple

import zstandard

from cache_format.errors import CorruptArchiveError
from cache_format.storage.os_errors import reading

_RECORD_BYTES = 512
_LONGEST_NAME = 100  # what a header has room for without an extension
_END = bytes(2 * _RECORD_BYTES)
_LEVEL = 1
_MAGIC = zstandard.FRAME_HEADER
_MAX_WINDOW_BYTES = 1 << 23
_CHECKSUM_BYTES = 4
_RLE, _RESERVED = 1, 3  # types of a block: RFC 8878, section 3.1.1.2


class ArchivedFile(NamedTuple):
    """A file to be written; ``chunks`` must be ``num_bytes`` together."""

    name: str
    num_bytes: int
    chunks: Iterable[bytes]


def write_archive(sink: BinaryIO, files: Iterable[ArchivedFile], num_threads: int) -> None:
    """Write ``files`` as one frame with a checksum; the bytes do not depend on ``num_threads``.

    Raises ValueError for a name that a header has no room for.
    """
    settings = zstandard.ZstdCompressionParameters.from_level(
        _LEVEL, write_checksum=True, threads=max(1, num_threads)
    )
    compressor = zstandard.ZstdCompressor(compression_params=settings)
    with compressor.stream_writer(sink, closefd=False) as stream:
        for file in files:
            stream.write(_header(file.name, file.num_bytes))
            written = 0
            for chunk in file.chunks:
                stream.write(chunk)
                written += len(chunk)
            assert written == file.num_bytes, file.name
            stream.write(bytes(-written % _RECORD_BYTES))
            # So that at the other end of a pipe it has arrived when it has been sent.
            stream.flush(zstandard.FLUSH_BLOCK)
        stream.write(_END)


class ArchiveReader:
    """Reads what ``write_archive`` wrote, file by file, as the caller expects them.

    Every method raises CorruptArchiveError, which says where, for anything else.
    """

    def __init__(self, source: BinaryIO, name: str) -> None:
        """``name`` is what errors call the archive."""
        self._name = name
        self._blocks = self._decompressed(source)
        self._ahead = memoryview(b"")
        self._next: tarfile.TarInfo | None = None
        self._position = 0

    def next_name(self) -> str:
        """Name of the file that comes next."""
        return self._header().name

    def read(self, name: str, at_most: int) -> bytes:
        """The file that comes next; it must be ``name`` and have ``at_most`` that many bytes."""
        found = self._expect(name)
        if not 0 <= found <= at_most:
            raise self._corrupt(f"{name}: expected at most {at_most} bytes, found {found}")
        return b"".join(self._content(found))

    def chunks(self, name: str, num_bytes: int) -> Iterator[bytes]:
        """The file that comes next, piece by piece; it must be ``name`` and have ``num_bytes``."""
        found = self._expect(name)
        if found != num_bytes:
            raise self._corrupt(f"{name}: expected {num_bytes} bytes, found {found}")
        return self._content(num_bytes)

    def end(self) -> None:
        """The archive must end here."""
        if self._next is not None or self._take(len(_END)) != _END:
            raise self._corrupt("expected its end, found more")
        if self._ahead or any(self._blocks):
            raise self._corrupt("something follows its end")

    def _expect(self, name: str) -> int:
        """The size that the next header gives, which must be of a regular file ``name``."""
        info = self._header()
        if info.name != name or info.type != tarfile.REGTYPE or info.linkname:
            kind = "file" if info.type == tarfile.REGTYPE else f"entry of type {info.type!r}"
            raise self._corrupt(f"expected the file {name!r}, found the {kind} {info.name!r}")
        self._next = None
        return info.size

    def _header(self) -> tarfile.TarInfo:
        if self._next is None:
            block = self._take(_RECORD_BYTES)
            try:
                self._next = tarfile.TarInfo.frombuf(block, "ascii", "strict")
            except (tarfile.HeaderError, ValueError) as error:
                raise self._corrupt(f"expected a file's header, found none: {error}") from error
        return self._next

    def _content(self, num_bytes: int) -> Iterator[bytes]:
        left = num_bytes
        while left > 0:
            piece = self._some(left)
            left -= len(piece)
            yield piece
        self._take(-num_bytes % _RECORD_BYTES)

    def _take(self, num_bytes: int) -> bytes:
        pieces = []
        while num_bytes > 0:
            pieces.append(self._some(num_bytes))
            num_bytes -= len(pieces[-1])
        return b"".join(pieces)

    def _some(self, at_most: int) -> bytes:
        """From 1 to ``at_most`` bytes."""
        while not self._ahead:
            block = next(self._blocks, None)
            if block is None:
                raise self._corrupt("its end comes too early")
            self._ahead = memoryview(block)
        piece, self._ahead = self._ahead[:at_most], self._ahead[at_most:]
        return bytes(piece)

    def _decompressed(self, source: BinaryIO) -> Iterator[bytes]:
        """The frame's content, block by block; at its end the checksum is compared."""
        begin = self._fetch(source, 5)
        if begin[:4] != _MAGIC:
            raise self._corrupt("it does not begin as a zstd file does")
        decompressor = zstandard.ZstdDecompressor(max_window_size=_MAX_WINDOW_BYTES)
        frame = decompressor.decompressobj()
        with self._naming_zstd():
            header = begin + self._fetch(source, zstandard.frame_header_size(begin) - len(begin))
            if not zstandard.get_frame_parameters(header).has_checksum:
                raise self._corrupt("its frame has no checksum")
            frame.decompress(header)
            is_last = False
            while not is_last:
                head = self._fetch(source, 3)
                value = int.from_bytes(head, "little")
                is_last, kind, size = bool(value & 1), value >> 1 & 3, value >> 3
                if kind == _RESERVED:
                    raise self._corrupt("a block of a type that does not exist")
                yield frame.decompress(head + self._fetch(source, 1 if kind == _RLE else size))
            frame.decompress(self._fetch(source, _CHECKSUM_BYTES))
        assert frame.eof
        with reading(Path(self._name)):
            if source.read(1):
                raise self._corrupt("something follows its end")

    def _fetch(self, source: BinaryIO, num_bytes: int) -> bytes:
        """The next ``num_bytes`` of the file."""
        data = b""
        while len(data) < num_bytes:
            with reading(Path(self._name)):
                piece = source.read(num_bytes - len(data))
            if not piece:
                raise self._corrupt("it was cut short")
            data += piece
        self._position += num_bytes
        return data

    @contextmanager
    def _naming_zstd(self) -> Iterator[None]:
        try:
            yield
        except zstandard.ZstdError as error:
            raise self._corrupt(f"zstd refuses it: {error}") from error

    def _corrupt(self, what: str) -> CorruptArchiveError:
        return CorruptArchiveError(f"{self._name}: at byte {self._position}: {what}")


def _header(name: str, num_bytes: int) -> bytes:
    if len(name) > _LONGEST_NAME:
        raise ValueError(
            f"{name}: cannot be packed: a name in an archive has at most {_LONGEST_NAME} "
            f"characters, this one {len(name)}"
        )
    info = tarfile.TarInfo(name)
    info.size = num_bytes
    return info.tobuf(tarfile.GNU_FORMAT, "ascii", "strict")
