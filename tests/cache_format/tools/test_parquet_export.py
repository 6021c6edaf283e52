"""``export_parquet``: what each of the usual readers finds is what the cache holds."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

import cache_format
from cache_format.codec.row_codec import Row
from cache_format.errors import CorruptShardError, ForeignDirectoryError
from cache_format.tools.parquet_export import Export, export_parquet
from cache_format.writer import CacheWriter
from tests.support.sample_cache import (
    TARGETS,
    contents,
    drawn_targets,
    hidden_targets,
    sample_row,
    sample_shared,
    sample_spec,
    sampled_targets,
    shard_path,
    top_k_hidden_targets,
    with_context,
    write_sample_cache,
)

TRAIN = Export(splits=("train",))


@pytest.fixture
def out(root: Path, tmp_path: Path) -> Path:
    export_parquet(cache_format.open(root), tmp_path / "out", Export())
    return tmp_path / "out"


def train_rows(root: Path) -> list[Row]:
    return [row for _, row in cache_format.open(root).iter_rows("train")]


def assert_is_row(found: dict[str, Any], row: Row) -> None:
    """``found`` are the columns of one row as Python lists."""
    scored, kept_ids = row.scored(), row.kept
    assert found["token_ids"] == row.token_ids.tolist()
    assert found["document_starts"] == row.document_starts.tolist()
    is_context = np.zeros(len(scored), bool) if row.is_context is None else row.is_context
    assert found["is_context"] == is_context.tolist()
    assert found["num_kept"] == kept_ids.num_ids.tolist()
    ends = np.cumsum(kept_ids.num_ids)
    for t in range(len(scored)):
        kept = slice(int(ends[t]) - int(kept_ids.num_ids[t]), int(ends[t]))
        assert found["kept_ids"][t] == kept_ids.ids[kept].tolist()
        if not scored[t]:
            assert found["kept_ids"][t] == found["logprobs"][t] == found["tail_log_mass"][t] == []
            assert found["next_logprob"][t] is None
            continue
        assert found["tail_log_mass"][t] == kept_ids.tail_log_mass[t].tolist()
        assert found["next_logprob"][t] == kept_ids.next_logprob[t]
        p = np.exp(found["logprobs"][t])
        tail = np.exp(kept_ids.tail_log_mass[t, -1])
        # Together with the tail's share they are everything, and their ratios are the gaps.
        assert p.sum() + p[0] * tail == pytest.approx(1, abs=1e-6)
        np.testing.assert_allclose(np.log(p[0] / p), kept_ids.gaps[kept], atol=1e-5)
    if row.sketch is not None:
        one_after_another = row.sketch.reshape(len(scored), -1)
        np.testing.assert_array_equal(found["sketch"], one_after_another)


def test_the_export_has_these_files_and_columns(root: Path, out: Path) -> None:
    assert sorted(contents(out)) == [
        *("train/00001.parquet", "validation/00000.parquet", "validation/00003.parquet"),
    ]  # unit 2 has no rows
    schema = pq.read_schema(out / "train/00001.parquet")
    assert schema.names == [
        *("unit", "row", "token_ids", "document_starts", "is_context", "num_kept", "kept_ids"),
        *("logprobs", "next_logprob", "tail_log_mass", "sketch"),
    ]
    assert json.loads(schema.metadata[b"inverse_temperatures"]) == [0.5, 0.75, 1.0]
    assert schema.metadata[b"cache_id"].decode() == cache_format.open(root).cache_id


def test_pyarrow_reads_the_exported_rows(root: Path, out: Path) -> None:
    for split in ("train", "validation"):
        found = pq.read_table(out / split).sort_by([("unit", "ascending"), ("row", "ascending")])
        pairs = list(cache_format.open(root).iter_rows(split))
        assert found["unit"].to_pylist() == [unit for unit, _ in pairs]
        for (_, row), columns in zip(pairs, found.to_pylist(), strict=True):
            assert_is_row(columns, row)


def test_the_datasets_library_reads_the_exported_rows(
    root: Path, out: Path, tmp_path: Path
) -> None:
    import datasets

    loaded = datasets.load_dataset("parquet", data_dir=str(out), cache_dir=str(tmp_path / "hf"))
    assert {split: len(loaded[split]) for split in loaded} == {"train": 5, "validation": 5}
    for columns, row in zip(loaded["train"], train_rows(root), strict=True):
        assert_is_row(columns, row)


def test_polars_reads_the_exported_rows(root: Path, out: Path) -> None:
    import polars

    frame = polars.scan_parquet(out / "train" / "*.parquet").collect()
    rows = train_rows(root)
    for columns, row in zip(frame.iter_rows(named=True), rows, strict=True):
        assert_is_row(columns, row)
    mean = frame.select(polars.col("next_logprob").explode().mean()).item()
    scored = np.concatenate([row.kept.next_logprob[row.scored()] for row in rows])
    assert mean == pytest.approx(scored.mean(), abs=1e-6)


def test_duckdb_reads_the_exported_rows(root: Path, out: Path) -> None:
    import duckdb

    with duckdb.connect() as database:
        query = database.execute(f"SELECT * FROM '{out}/train/*.parquet' ORDER BY unit, row")
        names = [column[0] for column in query.description]
        rows = train_rows(root)
        for values, row in zip(query.fetchall(), rows, strict=True):
            assert_is_row(dict(zip(names, values, strict=True)), row)
        (mean,) = database.execute(
            f"SELECT avg(p) FROM (SELECT unnest(next_logprob) AS p FROM '{out}/train/*.parquet')"
        ).fetchall()[0]
    scored = np.concatenate([row.kept.next_logprob[row.scored()] for row in rows])
    assert mean == pytest.approx(scored.mean(), abs=1e-6)


def test_one_split_is_exported_without_sketches(root: Path, tmp_path: Path) -> None:
    what = Export(splits=("validation",), with_sketch=False)
    paths = export_parquet(cache_format.open(root), tmp_path / "out", what)
    assert [path.name for path in paths] == ["00000.parquet", "00003.parquet"]
    assert not (tmp_path / "out/train").exists()
    assert "sketch" not in pq.read_schema(paths[0]).names


def test_a_cache_without_hidden_states_is_exported_without_sketches(tmp_path: Path) -> None:
    write_sample_cache(tmp_path / "cache", sample_spec(with_sketch=False))
    (path,) = export_parquet(cache_format.open(tmp_path / "cache"), tmp_path / "out", TRAIN)
    assert "sketch" not in pq.read_schema(path).names
    assert_is_row(pq.read_table(path).to_pylist()[0], train_rows(tmp_path / "cache")[0])


def test_sketches_of_several_layers_are_exported_one_after_another(tmp_path: Path) -> None:
    spec = sample_spec()
    spec = replace(spec, sketch=replace(spec.sketch, hidden_states="each:1,2"))
    write_sample_cache(tmp_path / "cache", spec)
    (path,) = export_parquet(cache_format.open(tmp_path / "cache"), tmp_path / "out", TRAIN)
    for columns, row in zip(
        pq.read_table(path).to_pylist(), train_rows(tmp_path / "cache"), strict=True
    ):
        assert row.sketch is not None
        assert row.sketch.shape == (12, 2, 8)
        assert_is_row(columns, row)


def test_sampled_targets_are_exported_with_their_counts(tmp_path: Path) -> None:
    spec = sample_spec(with_sketch=False, targets=sampled_targets(num_draws=20))
    row = sample_row(0, spec)
    writer = CacheWriter.create_or_open(tmp_path / "cache", spec, sample_shared())
    writer.write_unit(1, [row], num_documents=1)
    writer.publish_manifest(12, complete=True)
    (path,) = export_parquet(cache_format.open(tmp_path / "cache"), tmp_path / "out", TRAIN)
    ((_, found),) = cache_format.open(tmp_path / "cache").iter_rows("train")
    assert found.kept.counts is not None
    (columns,) = pq.read_table(path).to_pylist()
    assert "tail_log_mass" not in columns
    assert json.loads(pq.read_schema(path).metadata[b"draw_inverse_temperature"]) == 1.0
    assert [n for position in columns["counts"] for n in position] == found.kept.counts.tolist()
    for numbers, logprobs in zip(columns["counts"], columns["logprobs"], strict=True):
        np.testing.assert_allclose(np.exp(logprobs), np.array(numbers) / 20, atol=1e-6)


def test_tail_samples_are_exported_with_their_temperature(tmp_path: Path) -> None:
    spec = sample_spec(with_sketch=False, targets=drawn_targets())
    write_sample_cache(tmp_path / "cache", spec)
    (path,) = export_parquet(cache_format.open(tmp_path / "cache"), tmp_path / "out", TRAIN)
    metadata = pq.read_schema(path).metadata
    assert json.loads(metadata[b"draw_inverse_temperature"]) == 0.5
    found = pq.read_table(path).to_pylist()
    for columns, row in zip(found, train_rows(tmp_path / "cache"), strict=True):
        assert_is_row(columns, row)
        draws = row.kept.draws
        assert draws is not None
        assert [len(ids) for ids in columns["drawn_ids"]] == draws.num_ids.tolist()
        for name, array in (("drawn_ids", draws.ids), ("draw_counts", draws.counts)):
            assert [n for position in columns[name] for n in position] == array.tolist()
        ends = np.cumsum(draws.num_ids, dtype=np.int64)
        for t in np.flatnonzero(draws.num_ids):
            gaps = draws.gaps[ends[t] - draws.num_ids[t] : ends[t]]
            # The same zero as that of the kept ids: log p of the first one.
            expected = columns["logprobs"][t][0] - gaps
            np.testing.assert_allclose(columns["drawn_logprobs"][t], expected, atol=1e-5)


def test_hidden_states_are_exported_as_their_coefficients(tmp_path: Path) -> None:
    spec = sample_spec(targets=hidden_targets())
    write_sample_cache(tmp_path / "cache", spec)
    cache = cache_format.open(tmp_path / "cache")
    (path,) = export_parquet(cache, tmp_path / "out", TRAIN)
    schema = pq.read_schema(path)
    assert schema.names == [
        *("unit", "row", "token_ids", "document_starts", "is_context", "coefficients", "sketch"),
    ]
    assert b"inverse_temperatures" not in schema.metadata
    assert cache.transform is not None
    found = pq.read_table(path).to_pylist()
    for columns, row in zip(found, train_rows(tmp_path / "cache"), strict=True):
        assert row.coefficients is not None
        assert columns["token_ids"] == row.token_ids.tolist()
        for t, is_scored in enumerate(row.scored()):
            expected = row.coefficients[t].tolist() if is_scored else []
            assert columns["coefficients"][t] == expected
        t = int(np.flatnonzero(row.scored())[0])
        states = cache.transform.states(np.array(columns["coefficients"][t : t + 1]))
        np.testing.assert_array_equal(states, cache.transform.states(row.coefficients[t : t + 1]))


def test_kept_ids_and_hidden_states_are_exported_side_by_side(tmp_path: Path) -> None:
    write_sample_cache(tmp_path / "cache", sample_spec(targets=top_k_hidden_targets()))
    cache = cache_format.open(tmp_path / "cache")
    (path,) = export_parquet(cache, tmp_path / "out", TRAIN)
    schema = pq.read_schema(path)
    assert schema.names == [
        *("unit", "row", "token_ids", "document_starts", "is_context", "num_kept", "kept_ids"),
        *("logprobs", "next_logprob", "tail_log_mass", "coefficients", "sketch"),
    ]
    assert json.loads(schema.metadata[b"inverse_temperatures"]) == [0.5, 0.75, 1.0]
    found = pq.read_table(path).to_pylist()
    for columns, row in zip(found, train_rows(tmp_path / "cache"), strict=True):
        assert_is_row(columns, row)
        assert row.coefficients is not None
        for t, is_scored in enumerate(row.scored()):
            expected = row.coefficients[t].tolist() if is_scored else []
            assert columns["coefficients"][t] == expected


@pytest.mark.parametrize("kind", TARGETS)
def test_positions_of_context_are_exported_as_such_and_without_targets(
    tmp_path: Path, kind: str
) -> None:
    spec = sample_spec(targets=TARGETS[kind])
    is_context = np.arange(12) < 5
    rows = [with_context(sample_row(0, spec), is_context), sample_row(1, spec)]
    writer = CacheWriter.create_or_open(tmp_path / "cache", spec, sample_shared(spec))
    writer.write_unit(1, rows, num_documents=1)
    writer.publish_manifest(24, complete=True)
    (path,) = export_parquet(cache_format.open(tmp_path / "cache"), tmp_path / "out", TRAIN)
    first, second = pq.read_table(path).to_pylist()
    assert first["is_context"] == is_context.tolist()
    assert second["is_context"] == [False] * 12
    names = {"coefficients", "kept_ids"} & first.keys()
    assert ("coefficients" in names) == (spec.targets.hidden is not None)
    assert ("kept_ids" in names) == (kind != "hidden")
    for name in names:
        assert [len(values) > 0 for values in first[name]] == rows[0].scored().tolist()
        assert [len(values) > 0 for values in second[name]] == rows[1].scored().tolist()


def test_caches_without_tail_samples_export_no_columns_for_them(out: Path) -> None:
    schema = pq.read_schema(out / "train/00001.parquet")
    assert not any("draw" in name for name in schema.names)
    assert b"draw_inverse_temperature" not in schema.metadata


def test_exports_larger_than_a_row_group_keep_every_row(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cache_format.tools.parquet_export._ROWS_PER_GROUP", 2)
    (path,) = export_parquet(cache_format.open(root), tmp_path / "out", TRAIN)
    assert pq.ParquetFile(path).num_row_groups == 3
    assert pq.read_table(path)["row"].to_pylist() == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("num_threads", [1, 3])
def test_an_interrupted_export_resumes(root: Path, out: Path, num_threads: int) -> None:
    whole = contents(out)
    kept = out / "validation/00000.parquet"
    inode = kept.stat().st_ino
    (out / "train/00001.parquet").unlink()
    (out / "train/.tmp-00001.parquet-half").write_bytes(b"PAR1")
    seen: list[tuple[int, int]] = []
    export_parquet(
        cache_format.open(root),
        out,
        Export(),
        num_threads=num_threads,
        report=lambda *now: seen.append(now),
    )
    assert contents(out) == whole
    assert kept.stat().st_ino == inode
    assert seen == sorted(seen)
    assert seen[-1] == (120, 120)


def test_a_damaged_shard_leaves_no_file(root: Path, tmp_path: Path) -> None:
    path = shard_path(root, 1)
    path.write_bytes(bytes(path.stat().st_size))
    with pytest.raises(CorruptShardError, match=path.name):
        export_parquet(cache_format.open(root), tmp_path / "out", Export())
    assert not list((tmp_path / "out/train").iterdir())


def test_exporting_into_a_cache_is_refused(root: Path) -> None:
    before = contents(root)
    with pytest.raises(ForeignDirectoryError, match=r"is a cache \(it has spec.json\)"):
        export_parquet(cache_format.open(root), root, Export())
    assert contents(root) == before


def test_files_of_another_export_are_refused(root: Path, out: Path, tmp_path: Path) -> None:
    before = contents(out)
    cache = cache_format.open(root)
    with pytest.raises(ForeignDirectoryError, match=r"\.parquet: made from another shard"):
        export_parquet(cache, out, Export(with_sketch=False))
    write_sample_cache(tmp_path / "other", sample_spec(seed=8))
    with pytest.raises(ForeignDirectoryError, match=r"\.parquet: made from another shard"):
        export_parquet(cache_format.open(tmp_path / "other"), out, Export())
    assert contents(out) == before
    (out / "train/00001.parquet").write_bytes(b"mine")
    with pytest.raises(ForeignDirectoryError, match="in the way"):
        export_parquet(cache, out, TRAIN)
