"""A cache as Parquet: one file for each shard, its columns plain, for whatever reads Parquet.

In: an opened cache. Out: ``train/00001.parquet``, ``validation/00000.parquet`` and so on, so that
``datasets.load_dataset("parquet", data_dir=…)`` finds the splits by itself. Far larger than the
cache, and rounded as the cache is; students are trained from the cache itself.

A row is a packed sequence of T positions; position t predicts ``token_ids[t + 1]``. The lists of a
position that is not scored (its next token belongs to another document, or the position is context)
are empty, its ``next_logprob`` is null, so that no mean counts it, and its sketch is zeros.

========================  ====================================================================
``unit``, ``row``         int32: the unit, and the row within it
``token_ids``             list<int32>, T + 1 of them
``document_starts``       list<int32>: indices above 0 into ``token_ids`` where a document begins
``is_context``            list<bool>, T: whether the next token is given, but not to be learned
``num_kept``              list<int32>, T
``kept_ids``              list<list<int32>>: the likeliest ids of each position, falling
``logprobs``              list<list<float>>: their log-probabilities at temperature 1, in nats; of
                          samples log(count / draws), at the temperature that they are drawn at
``next_logprob``          list<float>: log-probability of the next token at temperature 1
``tail_log_mass``         list<list<float>>: at each node s, log Σ exp((z − z_max)·s) of the rest,
                          unless targets are samples
``counts``                list<list<int32>>: how often each id was drawn, if targets are samples
``drawn_ids``             list<list<int32>>: ids drawn from those not kept, if any are
``draw_counts``           list<list<int32>>: how often each of them was drawn
``drawn_logprobs``        list<list<float>>: their log-probabilities at temperature 1
``coefficients``          list<list<int32>>: of each position's last hidden state, if targets are
                          hidden states; without kept ids beside them, the columns from
                          ``num_kept`` on are left out
``moment_coefficients``   list<list<int32>>: of the moments of each position's tail, if targets have
                          them
``sketch``                list<fixed_size_list<float>>: the projected hidden states of each position
                          one after another
========================  ====================================================================

z_max − z of a kept id is ``logprobs[0] − logprobs[i]``. At temperature 1/s the ids that are not
kept have exp(tail) / (exp(tail) + Σ exp(−(z_max − z)·s)) of the mass. The nodes s stand in the
files' metadata under ``inverse_temperatures``; ``draw_inverse_temperature`` is the one at which ids
are drawn, in proportion to exp(z·s).

Coefficients c are those of the cache's ``transform.bin``, which is not exported: the hidden state
is μ + Bᵀc, as ``cache.transform.states`` gives it, and the logits are the teacher's head
(``teacher/embedding.safetensors``) times that; see the format's README. Those of the moments are
coefficients of ``tail_moment.bin``; ``cache.moment.moments`` gives the moments.
"""

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from threading import Lock

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from cache_format.codec.plain_columns import PlainColumn
from cache_format.codec.row_codec import Row
from cache_format.codec.targets.kinds import kind_of
from cache_format.errors import ForeignDirectoryError
from cache_format.metadata import layout
from cache_format.metadata.manifest import ShardEntry
from cache_format.metadata.spec import CacheSpec, Split
from cache_format.reader import Cache
from cache_format.storage.atomic import atomic_file, make_directory, remove_leftovers
from cache_format.threads import in_threads
from cache_format.tools.inside import require_outside

_ROWS_PER_GROUP = 32  # at T = 512 and k = 64 about a million kept ids


@dataclass(frozen=True, kw_only=True)
class Export:
    """What is exported."""

    splits: tuple[Split, ...] = ("train", "validation")
    with_sketch: bool = True
    """Whether sketches are exported, if the cache has any."""


@dataclass(frozen=True)
class _Column:
    """One list of the table: what a row has in it, [T] or [T + 1] of ``kind``."""

    name: str
    kind: pa.DataType
    values: Callable[[Row], pa.Array]


@dataclass(frozen=True)
class _File:
    """What a file holds: the rows of a shard that belong to a split."""

    split: Split
    entry: ShardEntry
    rows: range

    def path(self, out: Path) -> Path:
        return out / self.split / f"{self.entry.unit:05d}.parquet"


def export_parquet(
    cache: Cache,
    out: Path,
    what: Export,
    *,
    num_threads: int = 1,
    report: Callable[[int, int], None] = lambda done, total: None,
) -> list[Path]:
    """Write ``out/<split>/<unit>.parquet`` for every shard with rows of a split; returns the files.

    Files that are there are kept: they are whole. ``report`` is told the positions that are done,
    and of all. Raises ForeignDirectoryError if ``out`` is a cache or lies in ``cache``, or a file
    there was made from another shard or with other columns, CacheError naming the shard if one
    cannot be read.
    """
    for name in (layout.SPEC, layout.MANIFEST):
        if (out / name).exists():
            raise ForeignDirectoryError(
                f"{out}: is a cache (it has {name}): choose another directory for the Parquet files"
            )
    for directory in (out, *(out / split for split in what.splits)):
        require_outside(directory, cache.storage)
    columns = _columns(cache.spec, what)
    files = [file for split in what.splits for file in _files(cache, split)]
    total = sum(len(file.rows) for file in files) * cache.spec.sequence_length
    done = 0
    lock = Lock()

    def advance(num_rows: int) -> None:
        nonlocal done
        with lock:
            done += num_rows * cache.spec.sequence_length
            report(done, total)

    def export(file: _File) -> None:
        path, schema = file.path(out), _schema(cache.spec, file.entry, columns)
        if path.exists():
            _require_same(path, schema)
            advance(len(file.rows))
            return
        with (
            atomic_file(path) as sink,
            pq.ParquetWriter(sink, schema, compression="zstd") as writer,
        ):
            for group in _tables(cache, file, columns, schema):
                writer.write_table(group)
                advance(group.num_rows)

    for split in what.splits:
        make_directory(out / split)
        remove_leftovers(out / split)
    in_threads(export, files, num_threads)
    return [file.path(out) for file in files]


def _columns(spec: CacheSpec, what: Export) -> list[_Column]:
    """All columns but ``unit`` and ``row``; those of the targets are their kind's."""
    columns = [
        _Column("token_ids", pa.int32(), lambda row: pa.array(row.token_ids, pa.int32())),
        _Column("document_starts", pa.int32(), lambda row: pa.array(row.document_starts)),
        _Column("is_context", pa.bool_(), _is_context),
        *map(_of_targets, kind_of(spec).PLAIN_COLUMNS),
    ]
    if what.with_sketch and spec.sketch.kind != "none":
        width = spec.sketch.num_states * spec.sketch.dim
        columns.append(_Column("sketch", pa.list_(pa.float32(), width), _sketch))
    return columns


def _of_targets(column: PlainColumn) -> _Column:
    kind = pa.from_numpy_dtype(np.dtype(column.dtype))

    def values(row: Row) -> pa.Array:
        found = column.values(row)
        numbers = pa.array(found.numbers, kind, mask=found.is_null)
        if found.lengths is None:
            return numbers
        ends = np.cumsum(found.lengths, dtype=np.int32)
        return pa.ListArray.from_arrays(np.concatenate([[0], ends]).astype(np.int32), numbers)

    return _Column(column.name, pa.list_(kind) if column.is_list else kind, values)


def _is_context(row: Row) -> pa.Array:
    nowhere = np.zeros(len(row.token_ids) - 1, np.bool_)
    return pa.array(nowhere if row.is_context is None else row.is_context)


def _sketch(row: Row) -> pa.Array:
    assert row.sketch is not None, "the spec says that there is one"
    values = pa.array(row.sketch.reshape(-1), pa.float32())
    return pa.FixedSizeListArray.from_arrays(values, row.sketch[0].size)


def _schema(spec: CacheSpec, entry: ShardEntry, columns: Sequence[_Column]) -> pa.Schema:
    fields = [("unit", pa.int32()), ("row", pa.int32())]
    fields += [(column.name, pa.list_(column.kind)) for column in columns]
    metadata = {
        "cache_id": spec.cache_id,
        "shard_sha256": entry.sha256,
    }
    if spec.targets.kept is not None:
        metadata["inverse_temperatures"] = json.dumps(spec.targets.kept.inverse_temperatures)
    if spec.targets.draws is not None:
        metadata["draw_inverse_temperature"] = json.dumps(spec.targets.draws.inverse_temperature)
    return pa.schema(fields, metadata=metadata)


def _tables(
    cache: Cache, file: _File, columns: Sequence[_Column], schema: pa.Schema
) -> Iterator[pa.Table]:
    """The rows of a file, a row group at a time."""
    for first in range(0, len(file.rows), _ROWS_PER_GROUP):
        numbers = file.rows[first : first + _ROWS_PER_GROUP]
        group = [cache.read_row_of(file.entry, number) for number in numbers]
        units = [file.entry.unit] * len(group)
        arrays = [pa.array(values, pa.int32()) for values in (units, numbers)]
        arrays += [_list_of([column.values(row) for row in group]) for column in columns]
        yield pa.Table.from_arrays(arrays, schema=schema)


def _list_of(arrays: list[pa.Array]) -> pa.Array:
    """One list for each array."""
    offsets = np.array([0, *accumulate(len(array) for array in arrays)], np.int32)
    return pa.ListArray.from_arrays(offsets, pa.concat_arrays(arrays))


def _files(cache: Cache, split: Split) -> list[_File]:
    """The files of ``split``, none of them without rows."""
    files = [_File(split, entry, cache.rows_of(split, entry)) for entry in cache.shards(split)]
    return [file for file in files if file.rows]


def _require_same(path: Path, schema: pa.Schema) -> None:
    try:
        found = pq.read_schema(path)
    except (pa.ArrowException, OSError) as error:
        raise ForeignDirectoryError(f"{path}: in the way: {error}. Delete it.") from error
    if (found.names, found.metadata) != (schema.names, schema.metadata):
        raise ForeignDirectoryError(
            f"{path}: made from another shard, or with other options. Choose another directory, or "
            "delete this one to export again."
        )
