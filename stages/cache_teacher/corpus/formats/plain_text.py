"""Plain text: a document is a line, a paragraph or a whole file, as ``text_documents`` says.

Lines end in ``\\n`` or ``\\r\\n``, and a byte-order mark at the start of a document is left out.
Paragraphs are separated by one or more blank lines; within a document lines are joined by ``\\n``.
"""

from collections.abc import Generator, Iterable, Sequence

from cache_format.metadata.spec_parts.corpus import CorpusSpec
from stages.cache_teacher.corpus.formats.byte_streams import iter_lines, open_stream
from stages.cache_teacher.corpus.formats.document_file import (
    MAX_DOCUMENT_BYTES,
    TOO_LONG,
    BadDocument,
    DataFile,
    Document,
    DocumentFile,
    decoded,
    sequential_file,
)
from stages.cache_teacher.corpus.formats.line_file import open_lines


def open_text(file: DataFile, spec: CorpusSpec) -> DocumentFile[bytes]:
    """A text file of lines or paragraphs, plain or compressed."""
    if spec.text_documents != "paragraph":
        return open_lines(file, parse_text, spec.documents_per_unit)

    def records() -> Generator[bytes | BadDocument, None, None]:
        with open_stream(file) as stream:
            yield from iter_paragraphs(iter_lines(stream))

    return sequential_file(
        records, parse_text, lambda number: f"{file.name}, paragraph {number + 1:,}"
    )


def open_whole_files(files: Sequence[DataFile]) -> DocumentFile[bytes]:
    """Text files that are one document each, so that a unit is a run of files."""

    def records_from(first: int) -> Generator[bytes | BadDocument, None, None]:
        for file in files[first:]:
            with open_stream(file) as stream:
                content = stream.read(MAX_DOCUMENT_BYTES + 1)
            yield content if len(content) <= MAX_DOCUMENT_BYTES else TOO_LONG

    return DocumentFile(
        num_documents=len(files),
        entries=range(len(files)),
        records_from=records_from,
        parse=parse_text,
        place=lambda number: files[number].name,
    )


def iter_paragraphs(
    lines: Iterable[bytes | BadDocument],
) -> Generator[bytes | BadDocument, None, None]:
    """Runs of lines that are not blank."""
    paragraph: list[bytes] = []
    num_bytes = 0
    for line in lines:
        if isinstance(line, BadDocument):
            num_bytes = MAX_DOCUMENT_BYTES + 1
        elif line.strip():
            num_bytes += len(line) + 1
            if num_bytes <= MAX_DOCUMENT_BYTES:
                paragraph.append(line)
        elif num_bytes:
            yield b"\n".join(paragraph) if num_bytes <= MAX_DOCUMENT_BYTES else TOO_LONG
            paragraph, num_bytes = [], 0
    if num_bytes:
        yield b"\n".join(paragraph) if num_bytes <= MAX_DOCUMENT_BYTES else TOO_LONG


def parse_text(raw: bytes) -> Document:
    """``raw`` is a document."""
    text = decoded(raw, "utf-8-sig")
    if isinstance(text, BadDocument):
        return text
    return text.removesuffix("\r").replace("\r\n", "\n")
