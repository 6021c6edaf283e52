"""A shard: one unit's rows as the bytes of an Arrow IPC file, and a record batch's bytes as rows.

In: rows. Out: the file's bytes, its blocks (where each message lies, with its SHA-256) and
statistics. The other way round, a record batch is decoded from the bytes of two blocks alone, the
schema's and its own, after the caller has compared their hashes: neither Arrow nor zstd notices a
flipped bit. Called by the writer and the reader.
"""

import hashlib
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

import numpy as np
import pyarrow as pa
from pyarrow import ipc

from cache_format.codec import Encoded, Row, decode_row, encode_row
from cache_format.receipt import Block, ShardStatistics
from cache_format.spec import FORMAT_VERSION, CacheSpec

SKETCH_COLUMNS = ("sketch", "sketch_scale")

_BINARY_COLUMNS = (
    "token_ids",
    "num_kept",
    "kept_ids",
    "gaps",
    "tail_log_mass",
    "next_logprob",
)
_LEADING_BYTES = 8  # the magic of an Arrow file and its padding


@dataclass(frozen=True, kw_only=True)
class EncodedShard:
    """A shard before it is published."""

    data: pa.Buffer
    num_rows: int
    num_tokens: int
    blocks: tuple[Block, ...]
    statistics: ShardStatistics

    @property
    def sha256(self) -> str:
        """Hash of the whole file, in hex."""
        return hashlib.sha256(self.data).hexdigest()


def encode_shard(rows: Iterable[Row], spec: CacheSpec, unit: int) -> EncodedShard:
    """Encode all rows of ``unit``; raises ValueError naming row, column and position."""
    schema = _schema(spec, unit)
    options = ipc.IpcWriteOptions(compression=_zstd())
    sink = pa.BufferOutputStream()
    totals = _Totals(schema.names)
    num_batches = 0
    with ipc.new_file(sink, schema, options=options) as writer:
        for encoded in _batched(_encode_all(rows, spec, totals), spec.rows_per_batch):
            batch = _record_batch(encoded, schema)
            totals.add_batch(batch)
            writer.write_batch(batch)
            num_batches += 1
    data = sink.getvalue()
    return EncodedShard(
        data=data,
        num_rows=totals.num_rows,
        num_tokens=totals.num_rows * spec.sequence_length,
        blocks=_blocks_of(data, num_batches),
        statistics=totals.statistics(),
    )


def open_batch(
    schema_block: bytes, batch_block: bytes, unit: int, spec: CacheSpec, *, with_sketch: bool
) -> pa.RecordBatch:
    """The record batch in two blocks whose hashes have been compared.

    Raises ValueError if it is not one of this cache's. Columns that the format does not name are
    passed over.
    """
    try:
        schema = ipc.read_schema(pa.py_buffer(schema_block))
        _check_schema(schema, unit, spec)
        wanted = [field.name for field in _schema(spec, unit)]
        if not with_sketch:
            wanted = [name for name in wanted if name not in SKETCH_COLUMNS]
        options = ipc.IpcReadOptions(
            included_fields=[schema.get_field_index(name) for name in wanted], use_threads=False
        )
        stream = pa.BufferReader(schema_block + batch_block)
        batch = ipc.open_stream(stream, options=options).read_next_batch()
        batch.validate(full=True)
    except (pa.ArrowException, OSError, StopIteration) as error:
        raise ValueError(f"Arrow cannot read it: {error}") from error
    return batch


def row_of_batch(batch: pa.RecordBatch, index: int, spec: CacheSpec) -> Row:
    """Decode row ``index`` of ``batch``; raises ValueError naming the column."""
    encoded = {
        name: memoryview(batch.column(name)[index].as_buffer())
        for name in batch.schema.names
        if name != "document_starts"
    }
    starts = batch.column("document_starts")[index].values
    return decode_row(encoded, np.array(starts, np.int32), spec)


class _Totals:
    """Sums over a shard's rows and batches, of which ``inspect`` tells without decoding."""

    def __init__(self, column_names: Sequence[str]) -> None:
        self.num_rows = 0
        self._num_scored = 0
        self._num_kept = 0
        self._next_logprob: list[float] = []
        self._kept_mass: list[float] = []
        self._column_bytes = dict.fromkeys(column_names, 0)
        self._codec = _zstd()

    def add_row(self, row: Row) -> None:
        scored = row.scored()
        self.num_rows += 1
        self._num_scored += int(scored.sum())
        self._num_kept += int(row.num_kept.sum(dtype=np.int64))
        self._next_logprob.append(math.fsum(row.next_logprob[scored].tolist()))
        self._kept_mass.append(_kept_mass(row, scored))

    def add_batch(self, batch: pa.RecordBatch) -> None:
        """Add what each column takes: its buffers compressed alone, as Arrow IPC does it."""
        for name, column in zip(batch.schema.names, batch.columns, strict=True):
            for buffer in column.buffers():
                if buffer is not None and buffer.size > 0:
                    compressed = self._codec.compress(buffer)
                    self._column_bytes[name] += 8 + compressed.size

    def statistics(self) -> ShardStatistics:
        # Rounded: exp differs in its last bits between machines, and receipts should not.
        return ShardStatistics(
            column_bytes=self._column_bytes,
            num_scored=self._num_scored,
            sum_num_kept=self._num_kept,
            sum_next_logprob=round(math.fsum(self._next_logprob), 6),
            sum_kept_mass=round(math.fsum(self._kept_mass), 6),
        )


def _kept_mass(row: Row, scored: np.ndarray[tuple[int], np.dtype[np.bool_]]) -> float:
    """Σ over scored positions of the kept ids' share of the mass at T = 1."""
    if not scored.any():
        return 0.0
    starts = np.cumsum(row.num_kept, dtype=np.int64) - row.num_kept
    kept = np.add.reduceat(np.exp(-row.gaps.astype(np.float64)), starts[scored])
    tail = np.exp(row.tail_log_mass[scored, -1].astype(np.float64))
    return math.fsum((kept / (kept + tail)).tolist())


def _encode_all(rows: Iterable[Row], spec: CacheSpec, totals: _Totals) -> Iterator[Encoded]:
    for index, row in enumerate(rows):
        try:
            encoded = encode_row(row, spec)
        except ValueError as error:
            raise ValueError(f"row {index}: {error}") from error
        totals.add_row(row)
        yield encoded


def _batched(items: Iterator[Encoded], size: int) -> Iterator[list[Encoded]]:
    while batch := list(islice(items, size)):
        yield batch


def _record_batch(rows: list[Encoded], schema: pa.Schema) -> pa.RecordBatch:
    arrays = [pa.array([row[field.name] for row in rows], field.type) for field in schema]
    return pa.RecordBatch.from_arrays(arrays, schema=schema)


def _schema(spec: CacheSpec, unit: int) -> pa.Schema:
    names = _BINARY_COLUMNS if spec.sketch.kind == "none" else _BINARY_COLUMNS + SKETCH_COLUMNS
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
        if metadata.get(key) != expected.metadata[key]:
            raise ValueError(
                f"its schema says {key.decode()} {metadata.get(key, b'nothing').decode()}, "
                f"expected {expected.metadata[key].decode()}"
            )
    for field in expected:
        index = found.get_field_index(field.name)
        if index < 0 or found.field(index).type != field.type:
            kind = "nothing" if index < 0 else str(found.field(index).type)
            raise ValueError(f"column {field.name}: expected {field.type}, found {kind}")


def _blocks_of(data: pa.Buffer, num_batches: int) -> tuple[Block, ...]:
    """Where the schema's message and each record batch's message, body included, lie."""
    reader = pa.BufferReader(data)
    reader.seek(_LEADING_BYTES)
    blocks = []
    for _ in range(1 + num_batches):
        offset = reader.tell()
        ipc.read_message(reader)
        length = reader.tell() - offset
        digest = hashlib.sha256(data.slice(offset, length)).hexdigest()
        blocks.append(Block(offset, length, digest))
    return tuple(blocks)


def _zstd() -> pa.Codec:
    return pa.Codec("zstd", compression_level=1)
