"""Parquet: the columns of documents alone are read, row group by row group, also remotely."""

from collections.abc import Generator
from itertools import accumulate
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from cache_format.metadata.spec_parts.corpus import CorpusSpec
from stages.cache_teacher.corpus.formats.columns import (
    check_columns,
    columns_of,
    parser_of,
    records_of,
)
from stages.cache_teacher.corpus.formats.document_file import DataFile, DocumentFile
from stages.cache_teacher.corpus.network import NetworkFailedError
from stages.cache_teacher.corpus.open_file import open_binary

_BUFFER_BYTES = 4 << 20


def open_parquet(file: DataFile, spec: CorpusSpec) -> DocumentFile[Any]:
    """A Parquet file. Reading may begin at any row group."""
    raw = open_binary(file.url)
    try:
        parquet = pq.ParquetFile(raw, buffer_size=_BUFFER_BYTES)
        check_columns(parquet.schema_arrow, file.name, spec)
    except NetworkFailedError:
        raw.close()
        raise
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:  # the last of a name
        raw.close()
        raise ValueError(f"{file.name}: not a readable Parquet file: {error}") from error
    except ValueError:
        raw.close()
        raise
    metadata = parquet.metadata
    sizes = [metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)]
    starts = list(accumulate(sizes, initial=0))

    def close() -> None:
        parquet.close()
        raw.close()

    return DocumentFile(
        num_documents=metadata.num_rows,
        entries=starts,
        records_from=lambda group: _records(parquet, file, spec, group, starts[group]),
        parse=parser_of(spec),
        place=lambda number: f"{file.name}, document {number:,}",
        close_file=close,
    )


def _records(
    parquet: pq.ParquetFile, file: DataFile, spec: CorpusSpec, group: int, start: int
) -> Generator[Any, None, None]:
    batches = parquet.iter_batches(
        batch_size=512,
        row_groups=list(range(group, parquet.metadata.num_row_groups)),
        columns=columns_of(spec),
        use_threads=False,
    )
    number = start
    try:
        for batch in batches:
            yield from records_of(batch, spec)
            number += batch.num_rows
    except NetworkFailedError:
        raise
    except (pa.ArrowException, OSError) as error:
        raise ValueError(f"{file.name}: damaged near document {number:,}: {error}") from error
