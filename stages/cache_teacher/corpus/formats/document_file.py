"""The interface of a format: the number of documents in a file, and access to any range of them.

A format says at which documents reading may begin (``entries``), gives the raw records from there
on, and turns a record into a document. Everything else, such as skipping records and reading on
where the last run stopped, is the same for all formats.
"""

from bisect import bisect_right
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, Generic, TypeVar

R = TypeVar("R")

MAX_DOCUMENT_BYTES = 1 << 28
"""Longest line, CSV row, paragraph or whole text file that is read into memory."""


@dataclass(frozen=True)
class DataFile:
    """One file of a corpus: ``url`` is opened, ``name`` is shown and stands in the spec."""

    url: str
    name: str
    sha256: str = ""


@dataclass(frozen=True)
class BadDocument:
    """Stands where a document is not text; ``reason`` says what it is instead."""

    reason: str


@dataclass(frozen=True)
class Conversation:
    """Messages in their order, ``role``, ``content`` and what else a message has; the completion
    begins with number ``completion_start``."""

    messages: tuple[Mapping[str, Any], ...]
    completion_start: int

    @property
    def num_chars(self) -> int:
        """Of all contents."""
        return sum(len(message["content"]) for message in self.messages)


Text = str | BadDocument
Document = Text | Conversation
TOO_LONG = BadDocument(f"longer than {MAX_DOCUMENT_BYTES >> 20} MiB, too long for one document")


@dataclass(kw_only=True, eq=False)
class DocumentFile(Generic[R]):
    """An open file. Runs of documents in rising order cost one pass over it."""

    num_documents: int
    entries: Sequence[int]
    """Rising numbers of the documents at which reading may begin, from 0."""
    records_from: Callable[[int], Generator[R | BadDocument, None, None]]
    """The records from an entry on; the argument is its index in ``entries``."""
    parse: Callable[[R], Document]
    place: Callable[[int], str]
    """Where a document is, such as ``a.jsonl, line 3``."""
    close_file: Callable[[], None] = lambda: None

    def __post_init__(self) -> None:
        self._records: Generator[R | BadDocument, None, None] | None = None
        self._next = 0

    def read(self, start: int, count: int) -> Iterator[Document]:
        """Documents ``start`` to ``start + count``, fewer at the end; absent text is empty."""
        try:
            for record in islice(self._records_at(start), count):
                self._next += 1
                yield record if isinstance(record, BadDocument) else self.parse(record)
        except Exception:
            self._close_records()  # they have ended; the next run begins at an entry again
            raise

    def close(self) -> None:
        """Close the file; reading again is a mistake."""
        self._close_records()
        self.close_file()

    def _records_at(self, start: int) -> Iterator[R | BadDocument]:
        index = bisect_right(self.entries, start) - 1
        if self._records is None or not self.entries[index] <= self._next <= start:
            self._close_records()
            self._records, self._next = self.records_from(index), self.entries[index]
        for _ in islice(self._records, start - self._next):
            self._next += 1
        return self._records

    def _close_records(self) -> None:
        if self._records is not None:
            self._records.close()
            self._records = None


def sequential_file(
    records: Callable[[], Generator[R | BadDocument, None, None]],
    parse: Callable[[R], Document],
    place: Callable[[int], str],
) -> DocumentFile[R]:
    """A file that is read from its start, such as a compressed one; counted in one pass before.

    Memory is bounded by a record. To go back, or to resume in its midst, is to read from the start.
    """
    return DocumentFile(
        num_documents=sum(1 for _ in records()),
        entries=[0],
        records_from=lambda _: records(),
        parse=parse,
        place=place,
    )


def checked_text(text: str) -> Text:
    """``text`` if it can be written as UTF-8, which lone surrogates cannot."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        return BadDocument(f"not valid Unicode ({error})")
    return text


def decoded(raw: bytes, encoding: str = "utf-8") -> Text:
    """``raw`` as text."""
    try:
        return raw.decode(encoding)
    except UnicodeDecodeError as error:
        return BadDocument(f"not valid UTF-8 ({error})")
