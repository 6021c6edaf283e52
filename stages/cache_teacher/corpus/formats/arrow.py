"""Arrow streams, as ``datasets.Dataset.save_to_disk`` writes them, mapped into memory."""

from collections.abc import Generator
from itertools import accumulate
from typing import Any

import pyarrow as pa

from cache_format.metadata.spec_parts.corpus import CorpusSpec
from stages.cache_teacher.corpus.formats.columns import check_columns, parser_of, records_of
from stages.cache_teacher.corpus.formats.document_file import DataFile, DocumentFile


def open_arrow(file: DataFile, spec: CorpusSpec) -> DocumentFile[Any]:
    """An Arrow stream. Reading may begin at any record batch; pages are loaded as they are read."""
    try:
        with pa.memory_map(file.url) as raw, pa.ipc.open_stream(raw) as reader:
            check_columns(reader.schema, file.name, spec)
            sizes = [batch.num_rows for batch in reader]
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:  # the last of a name
        raise ValueError(f"{file.name}: not a readable Arrow stream: {error}") from error
    starts = list(accumulate(sizes, initial=0))
    return DocumentFile(
        num_documents=sum(sizes),
        entries=starts,
        records_from=lambda batch: _records(file, spec, batch, starts[batch]),
        parse=parser_of(spec),
        place=lambda number: f"{file.name}, document {number:,}",
    )


def _records(
    file: DataFile, spec: CorpusSpec, first: int, start: int
) -> Generator[Any, None, None]:
    number = start
    try:
        with pa.memory_map(file.url) as raw, pa.ipc.open_stream(raw) as reader:
            for index, batch in enumerate(reader):
                if index >= first:
                    yield from records_of(batch, spec)
                    number += batch.num_rows
    except (pa.ArrowException, OSError) as error:
        raise ValueError(f"{file.name}: damaged near document {number:,}: {error}") from error
