"""A shard: one unit's rows as the bytes of an Arrow IPC file, and a record batch's bytes as rows.

In: rows. Out: the file's bytes, its segments (which bytes hold what, with their SHA-256) and
statistics. The other way round, a record batch is decoded from the bytes of its segments alone,
after the caller has compared their hashes: Arrow notices no flipped bit. Each record batch is two
segments, targets and sketch, so that whoever wants no hidden states reads none.
"""

import hashlib
from collections.abc import Iterable, Iterator
from concurrent.futures import Executor
from dataclasses import dataclass
from itertools import islice
from typing import NamedTuple

import numpy as np
import pyarrow as pa
from pyarrow import ipc

from cache_format.codec.arrow_checks import require_message
from cache_format.codec.row_codec import Encoded, Row, decode_row, encode_row
from cache_format.codec.targets.kind import TargetKind, TargetSums, total_sums
from cache_format.codec.targets.kinds import kind_of
from cache_format.metadata.receipt import Segment, ShardStatistics
from cache_format.metadata.sealed_json import FORMAT_VERSION
from cache_format.metadata.spec import CacheSpec
from cache_format.tables.shared_files import SharedFiles
from cache_format.threads import map_in_order

SKETCH_COLUMNS = ("sketch", "sketch_scale")

_LEADING_BYTES = 8  # the magic of an Arrow file and its padding


@dataclass(frozen=True, kw_only=True)
class EncodedShard:
    """A shard before it is published."""

    data: pa.Buffer
    num_rows: int
    num_tokens: int
    segments: tuple[Segment, ...]
    statistics: ShardStatistics

    @property
    def sha256(self) -> str:
        """Hash of the whole file, in hex."""
        return hashlib.sha256(self.data).hexdigest()


def encode_shard(
    rows: Iterable[Row],
    spec: CacheSpec,
    shared: SharedFiles,
    unit: int,
    *,
    pool: Executor | None = None,
) -> EncodedShard:
    """Encode all rows of ``unit``; raises ValueError naming row, column and position.

    With a ``pool``, rows are encoded in it, a few at a time, while later ones are taken from
    ``rows``. The bytes are the same.
    """
    schema = _schema(spec, unit)
    sink = pa.BufferOutputStream()
    totals = _Totals(schema.names, spec)
    num_batches = 0
    with ipc.new_file(sink, schema) as writer:
        for encoded in _batched(_encode_all(rows, spec, shared, totals, pool), spec.rows_per_batch):
            writer.write_batch(_record_batch(encoded, schema))
            num_batches += 1
    data = sink.getvalue()
    return EncodedShard(
        data=data,
        num_rows=totals.num_rows,
        num_tokens=totals.num_rows * spec.sequence_length,
        segments=_segments_of(data, num_batches, spec),
        statistics=totals.statistics(),
    )


def open_batch(
    schema_bytes: bytes, batch_bytes: bytes, num_absent: int, unit: int, spec: CacheSpec
) -> pa.RecordBatch:
    """The record batch in bytes whose hashes have been compared.

    ``num_absent`` bytes at its end, the sketch, were left unread; its columns are then left out.
    Raises ValueError if it is not one of this cache's. Columns that the format does not name are
    passed over.
    """
    try:
        # Arrow wants a message to be whole. What is absent is never looked at.
        stream = pa.py_buffer(b"".join((schema_bytes, batch_bytes, bytes(num_absent))))
        require_message(stream.slice(0, len(schema_bytes)), "schema")
        require_message(stream.slice(len(schema_bytes)), "record batch")
        schema = ipc.read_schema(pa.py_buffer(schema_bytes))
        _check_schema(schema, unit, spec)
        wanted = [
            field.name
            for field in _schema(spec, unit)
            if not num_absent or field.name not in SKETCH_COLUMNS
        ]
        options = ipc.IpcReadOptions(
            included_fields=[schema.get_field_index(name) for name in wanted], use_threads=False
        )
        batch = ipc.open_stream(stream, options=options).read_next_batch()
        batch.validate(full=True)
    except (pa.ArrowException, OSError, StopIteration) as error:
        raise ValueError(f"Arrow cannot read it: {error}") from error
    _refuse_nulls(batch)
    return batch


def require_schema(schema_bytes: bytes, unit: int, spec: CacheSpec) -> None:
    """Raise ValueError unless a shard's first segment is the schema of ``unit`` of this cache."""
    require_message(pa.py_buffer(schema_bytes), "schema")
    try:
        schema = ipc.read_schema(pa.py_buffer(schema_bytes))
    except (pa.ArrowException, OSError) as error:
        raise ValueError(f"Arrow cannot read its schema: {error}") from error
    _check_schema(schema, unit, spec)


def row_of_batch(batch: pa.RecordBatch, index: int, spec: CacheSpec, shared: SharedFiles) -> Row:
    """Decode row ``index`` of ``batch``; raises ValueError naming the column."""
    encoded = {
        name: memoryview(batch.column(name)[index].as_buffer())
        for name in batch.schema.names
        if name != "document_starts"
    }
    starts = batch.column("document_starts")[index].values
    return decode_row(encoded, np.array(starts, np.int32), spec, shared)


class _RowSums(NamedTuple):
    """What the statistics take of one row."""

    num_scored: int
    targets: TargetSums


class _Totals:
    """Sums over a shard's rows and batches, of which ``inspect`` tells without decoding."""

    def __init__(self, column_names: list[str], spec: CacheSpec) -> None:
        self._rows: list[_RowSums] = []
        self._column_bytes = dict.fromkeys(column_names, 0)
        self._kind, self._spec = kind_of(spec), spec

    @property
    def num_rows(self) -> int:
        return len(self._rows)

    def add_row(self, encoded: Encoded, sums: _RowSums) -> None:
        for name, cell in encoded.items():
            self._column_bytes[name] += cell.nbytes if isinstance(cell, np.ndarray) else len(cell)
        self._rows.append(sums)

    def statistics(self) -> ShardStatistics:
        # Rounded: exp differs in its last bits between machines, and receipts should not.
        names = self._kind.bounds_of_sums(self._spec.targets)
        targets = total_sums((row.targets for row in self._rows), names)
        return ShardStatistics(
            column_bytes=self._column_bytes,
            num_scored=sum(row.num_scored for row in self._rows),
            sums={name: round(value, 6) for name, value in targets.items()},
        )


def _sums_of(row: Row, kind: TargetKind) -> _RowSums:
    scored = row.scored()
    return _RowSums(int(scored.sum()), kind.sums(row, scored))


def _encode_all(
    rows: Iterable[Row],
    spec: CacheSpec,
    shared: SharedFiles,
    totals: _Totals,
    pool: Executor | None,
) -> Iterator[Encoded]:
    kind = kind_of(spec)

    def encode(item: tuple[int, Row]) -> tuple[Encoded, _RowSums]:
        index, row = item
        try:
            return encode_row(row, spec, shared), _sums_of(row, kind)
        except ValueError as error:
            raise ValueError(f"row {index}: {error}") from error

    numbered = enumerate(rows)
    results = map(encode, numbered) if pool is None else map_in_order(encode, numbered, pool)
    for encoded, sums in results:
        totals.add_row(encoded, sums)
        yield encoded


def _batched(items: Iterator[Encoded], size: int) -> Iterator[list[Encoded]]:
    while batch := list(islice(items, size)):
        yield batch


def _record_batch(rows: list[Encoded], schema: pa.Schema) -> pa.RecordBatch:
    arrays = [pa.array([row[field.name] for row in rows], field.type) for field in schema]
    return pa.RecordBatch.from_arrays(arrays, schema=schema)


def _schema(spec: CacheSpec, unit: int) -> pa.Schema:
    # The sketch comes last, so that what lies before it is a record batch without it.
    sketch = SKETCH_COLUMNS if spec.sketch.kind != "none" else ()
    names = ("token_ids", "context", *kind_of(spec).COLUMNS, *sketch)
    fields = [pa.field(name, pa.binary(), nullable=False) for name in names]
    fields.insert(1, pa.field("document_starts", pa.list_(pa.int32()), nullable=False))
    metadata = {
        "format_version": FORMAT_VERSION,
        "cache_id": spec.cache_id,
        "unit": str(unit),
    }
    return pa.schema(fields, metadata=metadata)


def _check_schema(found: pa.Schema, unit: int, spec: CacheSpec) -> None:
    expected = _schema(spec, unit)
    metadata = found.metadata or {}
    for key in (b"cache_id", b"unit"):
        said, wanted = metadata.get(key, b"nothing"), expected.metadata[key]
        if said != wanted:
            raise ValueError(
                f"its schema says {key.decode()} {said.decode(errors='replace')}, "
                f"expected {wanted.decode()}"
            )
    for field in expected:
        index = found.get_field_index(field.name)
        if index < 0 or found.field(index).type != field.type:
            kind = "nothing" if index < 0 else str(found.field(index).type)
            raise ValueError(f"column {field.name}: expected {field.type}, found {kind}")


def _refuse_nulls(batch: pa.RecordBatch) -> None:
    for name, column in zip(batch.schema.names, batch.columns, strict=True):
        items = column.flatten() if pa.types.is_list(column.type) else column
        if column.null_count or items.null_count:
            raise ValueError(f"column {name}: expected no nulls, found some")


def _segments_of(data: pa.Buffer, num_batches: int, spec: CacheSpec) -> tuple[Segment, ...]:
    """Where the schema's message and the parts of each record batch's message lie."""
    reader = pa.BufferReader(data)
    reader.seek(_LEADING_BYTES)
    schema = ipc.read_schema(reader)
    ends = [reader.tell()]
    for _ in range(num_batches):
        message = ipc.read_message(reader)
        if spec.sketch.kind != "none":
            batch = ipc.read_record_batch(message, schema)
            first_address = min(
                buffer.address
                for name in SKETCH_COLUMNS
                for buffer in batch.column(name).buffers()
                if buffer is not None
            )
            ends.append(first_address - data.address)
        ends.append(reader.tell())
    starts = [_LEADING_BYTES, *ends[:-1]]
    return tuple(
        Segment(start, end - start, hashlib.sha256(data.slice(start, end - start)).hexdigest())
        for start, end in zip(starts, ends, strict=True)
    )
