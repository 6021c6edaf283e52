"""One file of a corpus: how many documents it holds, and any run of them without reading the rest.

In: a URL that fsspec opens (a local path, ``hf://…``). Out: documents as strings, in the file's
order. Called by ``corpus``. Parquet is read row group by row group, the text column alone; JSONL
and plain text hold one document a line and are read by seeking to a line whose offset is known,
which takes one pass over the whole file before: nothing for files behind a network.
"""

import hashlib
import io
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import IO, Any, Literal, Protocol, TypeVar, cast

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from fsspec.core import url_to_fs

from cache_format.storage import is_url
from stages.cache_teacher.corpus.retry import NetworkFailedError, retrying

FileKind = Literal["parquet", "jsonl", "text"]
KIND_OF_SUFFIX: dict[str, FileKind] = {
    ".parquet": "parquet",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "jsonl",
    ".txt": "text",
}
_BLOCK_BYTES = 4 << 20

_T = TypeVar("_T")


@dataclass(frozen=True)
class BadDocument:
    """Stands where a document is not text; ``reason`` says what it is instead."""

    reason: str


class DocumentFile(Protocol):
    """What ``corpus`` needs of an open file, whatever its kind."""

    num_documents: int

    def read(self, start: int, count: int) -> list[str | BadDocument]:
        """Documents ``start`` to ``start + count``; an absent text is the empty string."""

    def close(self) -> None: ...


class ParquetDocuments:
    """A Parquet file. Reading on where the last call stopped decodes nothing twice."""

    def __init__(self, url: str, name: str, text_column: str) -> None:
        self._name, self._text_column = name, text_column
        self._raw = open_binary(url)
        try:
            self._parquet = pq.ParquetFile(self._raw, buffer_size=_BLOCK_BYTES)
        except NetworkFailedError:
            self._raw.close()
            raise
        except (pa.ArrowException, OSError) as error:
            self._raw.close()
            raise ValueError(f"{name}: not a readable Parquet file: {error}") from error
        _check_text_column(self._parquet.schema_arrow, name, text_column)
        metadata = self._parquet.metadata
        sizes = [metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)]
        self._group_ends = np.cumsum(sizes, dtype=np.int64)
        self.num_documents: int = metadata.num_rows
        self._next = 0
        self._ahead: list[str | BadDocument] = []
        self._batches: Iterator[pa.RecordBatch] = iter(())

    def read(self, start: int, count: int) -> list[str | BadDocument]:
        """Documents ``start`` to ``start + count``; an absent text is the empty string."""
        if start != self._next or start == 0:
            self._seek(start)
        while len(self._ahead) < count:
            batch = self._next_batch()
            if batch is None:
                break
            self._ahead += _texts_of_column(batch.column(0))
        documents, self._ahead = self._ahead[:count], self._ahead[count:]
        self._next += len(documents)
        return documents

    def close(self) -> None:
        """Free the file; reading again is a mistake."""
        self._batches = iter(())
        self._parquet.close()
        self._raw.close()

    def _seek(self, document: int) -> None:
        group = int(np.searchsorted(self._group_ends, document, side="right"))
        skipped = document - (int(self._group_ends[group - 1]) if group else 0)
        self._batches = self._parquet.iter_batches(
            batch_size=512,
            row_groups=list(range(group, len(self._group_ends))),
            columns=[self._text_column],
            use_threads=False,
        )
        self._ahead, self._next = [], document
        while skipped > 0:
            batch = self._next_batch()
            assert batch is not None, "the footer counts more documents than the row group holds"
            if batch.num_rows > skipped:
                self._ahead = _texts_of_column(batch.column(0).slice(skipped))
            skipped -= batch.num_rows

    def _next_batch(self) -> pa.RecordBatch | None:
        try:
            return next(self._batches, None)
        except NetworkFailedError:
            raise
        except (pa.ArrowException, OSError) as error:
            message = f"{self._name}: damaged near document {self._next:,}: {error}"
            raise ValueError(message) from error


def _check_text_column(schema: pa.Schema, name: str, text_column: str) -> None:
    if text_column not in schema.names:
        raise ValueError(
            f"{name}: no column {text_column!r}; it has {', '.join(map(repr, schema.names))}. "
            "Set text_column to the one that holds the text."
        )
    found = schema.field(text_column).type
    if not (
        pa.types.is_string(found)
        or pa.types.is_large_string(found)
        or pa.types.is_string_view(found)
        or (pa.types.is_dictionary(found) and pa.types.is_string(found.value_type))
    ):
        raise ValueError(
            f"{name}: column {text_column!r} holds {found}, not text. "
            "Set text_column to a column of strings."
        )


def _texts_of_column(column: pa.Array) -> list[str | BadDocument]:
    try:
        return [text or "" for text in column.to_pylist()]
    except UnicodeDecodeError:  # Parquet does not check that its strings are UTF-8
        raw = column.cast(pa.string()).cast(pa.binary()).to_pylist()
        return [_decode_text(line or b"") for line in raw]


@dataclass(frozen=True)
class LineIndex:
    """Where a file's lines lie: the offset of every ``stride``-th line; and the file's hash."""

    num_lines: int
    stride: int
    offsets: Sequence[int]
    num_bytes: int
    sha256: str


def index_lines(url: str, stride: int) -> LineIndex:
    """Read the file once and note where every ``stride``-th line begins."""
    digest = hashlib.sha256()
    num_lines = position = 0
    offsets = [0]
    last = b"\n"
    with open_binary(url) as file:
        while block := file.read(_BLOCK_BYTES):
            digest.update(block)
            ends = np.flatnonzero(np.frombuffer(block, dtype=np.uint8) == ord("\n"))
            begun = num_lines + 1 + np.arange(len(ends))  # number of the line that follows
            offsets += (position + 1 + ends[begun % stride == 0]).tolist()
            num_lines += len(ends)
            position += len(block)
            last = block[-1:]
    if last != b"\n":  # the last line may end with the file
        num_lines += 1
    return LineIndex(num_lines, stride, offsets, position, digest.hexdigest())


class LineDocuments:
    """A JSONL or text file: one document a line. A run must begin at a multiple of the stride."""

    def __init__(
        self, url: str, index: LineIndex, parse: Callable[[bytes], str | BadDocument]
    ) -> None:
        self._url, self._index, self._parse = url, index, parse
        self.num_documents = index.num_lines

    def read(self, start: int, count: int) -> list[str | BadDocument]:
        """Documents ``start`` to ``start + count``; an absent text is the empty string."""
        assert start % self._index.stride == 0, "only lines with a known offset can be sought"
        ends = (*self._index.offsets, self._index.num_bytes)
        first = start // self._index.stride
        last = min(-(-(start + count) // self._index.stride), len(ends) - 1)
        with open_binary(self._url) as file:
            file.seek(ends[first])
            lines = file.read(ends[last] - ends[first]).split(b"\n")
        count = min(count, self.num_documents - start)
        return [self._parse(line) for line in lines[:count]]

    def close(self) -> None:
        """Nothing is held open between two reads."""


def parse_text_line(line: bytes) -> str | BadDocument:
    """A line of a text file is a document."""
    return _decode_text(line.removesuffix(b"\r"))


def parse_json_line(line: bytes, text_key: str) -> str | BadDocument:
    """A line of a JSONL file is an object whose ``text_key`` is the document."""
    if not line.strip():
        return ""
    try:
        record = json.loads(line)
    except ValueError as error:  # UnicodeDecodeError and JSONDecodeError alike
        return BadDocument(f"the line is not valid JSON ({error})")
    if not isinstance(record, dict):
        return BadDocument(f"the line holds a JSON {type(record).__name__}, not an object")
    if text_key not in record:
        keys = ", ".join(map(repr, list(record)[:20])) or "none"
        return BadDocument(f"no key {text_key!r}; its keys: {keys}. Set text_column to one of them")
    text = record[text_key]
    if text is None:
        return ""
    if not isinstance(text, str):
        return BadDocument(f"{text_key!r} is a JSON {type(text).__name__}, not text")
    return text


def _decode_text(raw: bytes) -> str | BadDocument:
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        return BadDocument(f"not valid UTF-8 ({error})")


def open_binary(url: str) -> IO[bytes]:
    """Open a local path or a URL for reading; nothing is downloaded before it is read.

    What a network lets fail is tried again, see ``retry``; NetworkFailedError
    once it has failed for good.
    """
    if is_url(url):
        return cast(IO[bytes], _RemoteFile(url))
    filesystem, path = url_to_fs(url)
    return cast(IO[bytes], filesystem.open(path, "rb"))


class _RemoteFile(io.RawIOBase):
    """A file behind a network. A read that fails is made again on a new connection."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._file: Any = None
        self._position = 0
        self._retrying(lambda file: None)

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        if whence == io.SEEK_CUR:
            offset += self._position
        elif whence == io.SEEK_END:  # only this asks the network
            offset += self._retrying(lambda file: int(file.size))
        self._position = offset
        return self._position

    def read(self, size: int | None = -1) -> bytes:
        """Up to ``size`` bytes, fewer only at the end of the file."""

        def read(file: Any) -> bytes:
            file.seek(self._position)
            data: bytes = file.read(-1 if size is None else size)
            return data

        data = self._retrying(read)
        self._position += len(data)
        return data

    def close(self) -> None:
        self._drop()
        super().close()

    def _retrying(self, action: Callable[[Any], _T]) -> _T:
        def attempt() -> _T:
            try:
                if self._file is None:
                    filesystem, path = url_to_fs(self._url)
                    # Whoever reads knows how much is wanted: nothing more is fetched ahead.
                    self._file = filesystem.open(path, "rb", cache_type="none")
                return action(self._file)
            except Exception:
                self._drop()  # whatever it remembers of a connection
                raise

        return retrying(attempt, self._url)

    def _drop(self) -> None:
        if self._file is not None:
            file, self._file = self._file, None
            file.close()


def sha256_of(url: str) -> str:
    """SHA-256 of the whole file, in hex."""
    digest = hashlib.sha256()
    with open_binary(url) as file:
        while block := file.read(_BLOCK_BYTES):
            digest.update(block)
    return digest.hexdigest()
