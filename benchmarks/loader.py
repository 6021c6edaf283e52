"""Reading rows back: this cache beside the same rows as plain Arrow and plain Parquet, both zstd.

Plain means ids as int32 and gaps, log-masses and log-probabilities as float16, four rows to a
record batch or row group, zstd level 3. They hold what this cache gives back, so the error is the
same; nothing is verified there, while this cache verifies every byte it reads. All three give NumPy
arrays with float32 numbers. Sequential: every row in order; random: every row once, in a random
order. One thread; the contenders take turns and medians are compared, because machines are noisy.
Without hidden states, which would cost the same everywhere.
"""

import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import click
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from pyarrow import ipc

import cache_format
from benchmarks.positions import SEQUENCE_LENGTH, demo_positions, make_rows, make_spec, read_logits
from benchmarks.progress import Done, Progress
from benchmarks.quick import quick_option, show
from cache_format.codec.row_codec import Row
from cache_format.metadata.spec import CacheSpec
from cache_format.tables.shared_files import SharedFiles
from cache_format.tables.vocabulary_ranks import RankTable
from cache_format.writer import CacheWriter

_TOP_K = 64
_COPIES = 8
_ROWS_PER_BATCH = 4

Reader = Callable[[Sequence[int]], int]


@click.command("loader", help=__doc__)
@quick_option(rows=8, repeats=2)
@click.option(
    "--logits",
    type=click.Path(exists=True, path_type=Path),
    help="A safetensors file of positions, see positions.py; else the demo's teacher.",
)
@click.option("--rows", type=int, default=32, show_default=True, help="Rows of the demo's teacher.")
@click.option("--repeats", type=int, default=5, show_default=True)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def loader(logits: Path | None, rows: int, repeats: int, as_json: bool) -> None:
    with Progress("loader", 2 * 3 * (repeats + 1)) as progress:
        figures = _figures(logits, rows, repeats, progress)
    show(figures, as_json)


def _figures(logits: Path | None, rows: int, repeats: int, progress: Progress) -> dict[str, Any]:
    progress.say("making positions, and files of them")
    positions = read_logits(logits) if logits else demo_positions(rows)
    ranks = positions.corpus_ranks
    if ranks is None:  # the ids kept in the first half make the table for the second
        half = len(positions) // 2
        ranks = RankTable.by_weight(positions.slice(0, half).kept_weights())
        positions = positions.slice(half, len(positions))
    spec, unit = make_spec(_TOP_K, ranks), make_rows(positions, _TOP_K)
    unit = unit[: len(unit) // _ROWS_PER_BATCH * _ROWS_PER_BATCH]
    if not unit:
        raise click.UsageError(f"at least {_ROWS_PER_BATCH * SEQUENCE_LENGTH} positions are needed")
    with tempfile.TemporaryDirectory() as directory:
        work = Path(directory)
        ours = _write_cache(work / "cache", spec, SharedFiles(ranks=ranks), unit)
        cache = cache_format.open(work / "cache")
        same = [cache.read_row("train", index)[1] for index in range(len(unit))]
        contenders = {
            "ours": ours,
            "arrow": _write_arrow(work / "rows.arrow", same),
            "parquet": _write_parquet(work / "rows.parquet", same),
        }
        sizes = {
            "ours": sum(shard.num_bytes for shard in cache.manifest.shards),
            "arrow": (work / "rows.arrow").stat().st_size,
            "parquet": (work / "rows.parquet").stat().st_size,
        }
        num_rows = _COPIES * len(unit)
        orders = {
            "sequential": np.arange(num_rows).tolist(),
            "random": np.random.default_rng(0).permutation(num_rows).tolist(),
        }
        progress.start()
        speeds = {
            kind: _speeds(contenders, order, repeats, progress.done)
            for kind, order in orders.items()
        }
    num_tokens = num_rows * SEQUENCE_LENGTH
    figures: dict[str, Any] = {
        "sequential_tokens_per_s": round(speeds["sequential"]["ours"]),
        "random_tokens_per_s": round(speeds["random"]["ours"]),
        "bytes_per_token": round(sizes["ours"] / num_tokens, 1),
    }
    for name in ("arrow", "parquet"):
        figures |= {
            f"{name}_bytes_per_token": round(sizes[name] / num_tokens, 1),
            f"{name}_bytes_over_ours": round(sizes[name] / sizes["ours"], 2),
        }
        for kind, speed in speeds.items():
            figures[f"{kind}_speed_over_{name}"] = round(speed["ours"] / speed[name], 2)
    return figures


def _speeds(
    contenders: dict[str, Callable[[], Reader]], order: Sequence[int], repeats: int, done: Done
) -> dict[str, float]:
    """Median tokens a second of each contender; files are opened anew every time."""
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(repeats + 1):
        for name, open_reader in contenders.items():
            read = open_reader()
            begin = time.perf_counter()
            num_tokens = read(order)
            seconds[name].append(time.perf_counter() - begin)
            done(name)
    return {name: num_tokens / statistics.median(times[1:]) for name, times in seconds.items()}


def _write_cache(
    path: Path, spec: CacheSpec, shared: SharedFiles, unit: Sequence[Row]
) -> Callable[[], Reader]:
    writer = CacheWriter.create_or_open(path, spec, shared)
    for copy in range(_COPIES):
        writer.write_unit(2 * copy + 1, unit, num_documents=1)  # odd units are training data
    writer.publish_manifest(num_tokens_requested=1, complete=True)

    def open_reader() -> Reader:
        cache = cache_format.open(path)
        cache.tables  # noqa: B018  read the table before the clock starts

        def read(order: Sequence[int]) -> int:
            return sum(len(cache.read_row("train", index)[1].kept.num_ids) for index in order)

        return read

    return open_reader


def _table(unit: Sequence[Row]) -> pa.Table:
    arrays_of: dict[str, list[NDArray[Any]]] = {
        "token_ids": [row.token_ids for row in unit],
        "kept_ids": [row.kept.ids for row in unit],
        "gaps": [row.kept.gaps.astype(np.float16) for row in unit],
        "tail_log_mass": [row.kept.tail_log_mass.astype(np.float16) for row in unit],
        "next_logprob": [row.kept.next_logprob.astype(np.float16) for row in unit],
    }
    columns = {
        name: [pa.array(array.reshape(-1)) for array in arrays]
        for name, arrays in arrays_of.items()
    }
    return pa.table(
        {
            name: pa.array([array.to_numpy() for array in arrays], pa.list_(arrays[0].type))
            for name, arrays in columns.items()
        }
    )


def _write_arrow(path: Path, unit: Sequence[Row]) -> Callable[[], Reader]:
    table = _table(unit)
    options = ipc.IpcWriteOptions(compression=pa.Codec("zstd", compression_level=3))
    with ipc.new_file(path, table.schema, options=options) as writer:
        for _ in range(_COPIES):
            writer.write_table(table, max_chunksize=_ROWS_PER_BATCH)

    def open_reader() -> Reader:
        reader = ipc.open_file(pa.memory_map(str(path)))
        return partial(_read_batches, reader.get_batch)

    return open_reader


def _write_parquet(path: Path, unit: Sequence[Row]) -> Callable[[], Reader]:
    table = _table(unit)
    with pq.ParquetWriter(path, table.schema, compression="zstd", compression_level=3) as writer:
        for _ in range(_COPIES):
            writer.write_table(table, row_group_size=_ROWS_PER_BATCH)

    def open_reader() -> Reader:
        reader = pq.ParquetFile(path, memory_map=True)

        def row_group(number: int) -> pa.RecordBatch:
            return reader.read_row_group(number, use_threads=False).to_batches()[0]

        return partial(_read_batches, row_group)

    return open_reader


def _read_batches(get_batch: Callable[[int], pa.RecordBatch], order: Sequence[int]) -> int:
    """Read rows as arrays of the kinds that a ``Row`` has; the batch read last is kept."""
    kept: tuple[int, Any] = (-1, None)
    num_tokens = 0
    for index in order:
        number, offset = divmod(index, _ROWS_PER_BATCH)
        if kept[0] != number:
            kept = (number, get_batch(number))
        arrays: dict[str, NDArray[Any]] = {
            name: column[offset].values.to_numpy(zero_copy_only=False)
            for name, column in zip(kept[1].schema.names, kept[1].columns, strict=True)
        }
        for name in ("gaps", "tail_log_mass", "next_logprob"):
            arrays[name] = arrays[name].astype(np.float32)
        num_tokens += len(arrays["next_logprob"])
    return num_tokens
