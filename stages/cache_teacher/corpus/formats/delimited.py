"""CSV and TSV: the first row names the columns, one of which holds the documents.

Fields may be quoted (``"``, doubled within), and span lines then. A row is known only to whoever
has read all before it, so these files are read from their start.
"""

import csv
import io
from collections.abc import Generator, Iterator
from contextlib import closing
from functools import partial

from cache_format.metadata.spec_parts.corpus import CorpusSpec
from stages.cache_teacher.corpus.formats.byte_streams import open_stream
from stages.cache_teacher.corpus.formats.document_file import (
    MAX_DOCUMENT_BYTES,
    BadDocument,
    DataFile,
    Document,
    DocumentFile,
    checked_text,
    sequential_file,
)


def open_csv(file: DataFile, spec: CorpusSpec, delimiter: str = ",") -> DocumentFile[list[str]]:
    """A CSV file, plain or compressed; ``delimiter`` separates fields."""
    with closing(_rows(file, delimiter)) as rows:
        header = next(rows, [])
    if header.count(spec.text_column) != 1:
        raise ValueError(
            f"{file.name}: its first row names {_times(header.count(spec.text_column))} column "
            f"{spec.text_column!r}; it has {', '.join(map(repr, header[:20])) or 'none'}. "
            "Set text_column to the one that holds the text."
        )

    def records() -> Generator[list[str] | BadDocument, None, None]:
        with closing(_rows(file, delimiter)) as rows:
            next(rows)
            yield from rows

    column = header.index(spec.text_column)
    parse = partial(_parse_row, column=column, num_columns=len(header))
    return sequential_file(records, parse, lambda number: f"{file.name}, row {number + 1:,}")


open_tsv = partial(open_csv, delimiter="\t")


def _rows(file: DataFile, delimiter: str) -> Generator[list[str], None, None]:
    csv.field_size_limit(MAX_DOCUMENT_BYTES)  # of the process; the default is 128 KiB
    num_chars = 0  # of the row that is being read

    def lines(text: io.TextIOWrapper) -> Iterator[str]:
        nonlocal num_chars
        while line := text.readline(MAX_DOCUMENT_BYTES):
            num_chars += len(line)
            if num_chars >= MAX_DOCUMENT_BYTES:
                raise csv.Error(f"a row longer than {MAX_DOCUMENT_BYTES >> 20} MiB")
            yield line

    with open_stream(file) as stream:
        # What is not UTF-8 becomes lone surrogates, so that only the row it is in is refused.
        text = io.TextIOWrapper(stream, "utf-8-sig", "surrogateescape", newline="")
        reader = csv.reader(lines(text), delimiter=delimiter, strict=True)
        try:
            for row in reader:
                num_chars = 0
                yield row
        except csv.Error as error:
            message = f"{file.name}, line {reader.line_num:,}: not valid CSV: {error}"
            raise ValueError(message) from error
        finally:
            text.detach()  # whoever opened the stream closes it


def _parse_row(row: list[str], column: int, num_columns: int) -> Document:
    if not row:
        return ""
    if len(row) != num_columns:
        return BadDocument(f"the row has {len(row)} fields where the first row has {num_columns}")
    return checked_text(row[column])


def _times(count: int) -> str:
    return "no" if count == 0 else f"{count} times the"
