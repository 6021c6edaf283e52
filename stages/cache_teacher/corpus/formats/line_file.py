"""Files of one document a line: plain ones are sought by offset, compressed ones read through."""

from collections.abc import Callable, Generator
from dataclasses import dataclass

import numpy as np

from stages.cache_teacher.corpus.formats.byte_streams import (
    BLOCK_BYTES,
    compression_of,
    iter_lines,
    open_stream,
)
from stages.cache_teacher.corpus.formats.document_file import (
    BadDocument,
    DataFile,
    Document,
    DocumentFile,
    sequential_file,
)


@dataclass(frozen=True)
class LineIndex:
    """Where a file's lines lie: their number, and the offset of every ``stride``-th."""

    num_lines: int
    offsets: list[int]


def open_lines(
    file: DataFile, parse: Callable[[bytes], Document], stride: int
) -> DocumentFile[bytes]:
    """A file of lines. Reading may begin at every ``stride``-th line of one that is plain."""

    def place(number: int) -> str:
        return f"{file.name}, line {number + 1:,}"

    def lines_from(offset: int) -> Generator[bytes | BadDocument, None, None]:
        with open_stream(file) as stream:
            if offset:
                stream.seek(offset)
            yield from iter_lines(stream)

    if compression_of(file.name) is not None:
        return sequential_file(lambda: lines_from(0), parse, place)
    index = index_lines(file, stride)
    return DocumentFile(
        num_documents=index.num_lines,
        entries=range(0, max(1, index.num_lines), stride),
        records_from=lambda entry: lines_from(index.offsets[entry]),
        parse=parse,
        place=place,
    )


def index_lines(file: DataFile, stride: int) -> LineIndex:
    """Read the file once and note where every ``stride``-th line begins."""
    num_lines = position = 0
    offsets = [0]
    last = b"\n"
    with open_stream(file) as stream:
        while block := stream.read(BLOCK_BYTES):
            ends = np.flatnonzero(np.frombuffer(block, dtype=np.uint8) == ord("\n"))
            begun = num_lines + 1 + np.arange(len(ends))  # number of the line that follows
            offsets += (position + 1 + ends[begun % stride == 0]).tolist()
            num_lines += len(ends)
            position += len(block)
            last = block[-1:]
    if last != b"\n":  # the last line may end with the file
        num_lines += 1
    return LineIndex(num_lines, offsets)
