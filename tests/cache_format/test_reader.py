"""Reading rows by split and index, attachments, incomplete caches, verification."""

import shutil
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import cache_format
from cache_format import shard_batches
from cache_format.errors import (
    Action,
    CorruptShardError,
    ForeignDirectoryError,
    IncompleteCacheError,
    MissingShardError,
)
from cache_format.reader import Cache
from cache_format.tools.verify import verify
from cache_format.writer import CacheWriter
from tests.support.sample_cache import (
    assert_decoded,
    assert_same_row,
    build_teacher,
    fill,
    sample_row,
    sample_shared,
    sample_spec,
    shard_path,
    unit_rows,
    write_sample_cache,
)

SPEC = sample_spec()


def test_a_receipt_by_another_name_is_ignored(root: Path) -> None:
    num_rows = cache_format.open(root).num_rows("train")
    (root / "manifest.json").unlink()
    shutil.copy(root / "receipts/00001.json", root / "receipts/000001.json")
    cache = cache_format.open(root, allow_incomplete=True)
    assert cache.num_rows("train") == num_rows  # each unit counts once


@pytest.mark.parametrize("with_sketch", [True, False])
def test_rows_are_read_by_split_and_index(root: Path, with_sketch: bool) -> None:
    cache = cache_format.open(str(root))
    expected = {
        "train": [(1, row) for row in unit_rows(1, SPEC)],
        "validation": [(unit, row) for unit in (0, 3) for row in unit_rows(unit, SPEC)],
    }
    for split in ("train", "validation"):
        assert cache.num_rows(split) == len(expected[split])
        for index in reversed(range(cache.num_rows(split))):
            unit, row = cache.read_row(split, index, with_sketch=with_sketch)
            given_unit, given = expected[split][index]
            assert unit == given_unit
            assert_decoded(row, given if with_sketch else replace(given, sketch=None), SPEC)
    units = [unit for unit, _ in cache.iter_rows("validation", with_sketch=with_sketch)]
    assert units == [0, 0, 0, 3, 3]


def test_an_open_cache_has_path_spec_and_manifest(root: Path) -> None:
    cache = cache_format.open(root)
    assert cache.path == root
    assert cache.spec == SPEC
    assert cache.cache_id == cache.manifest.cache_id == SPEC.cache_id
    assert cache.manifest.format_version == "2.0"
    assert cache.manifest.complete
    assert cache.manifest.num_tokens_requested == 120
    assert [entry.unit for entry in cache.shards("train")] == [1, 2]
    assert [entry.unit for entry in cache.shards("validation")] == [0, 3]


@pytest.mark.parametrize("index", [-1, 5])
def test_a_row_index_out_of_range_raises_index_error(root: Path, index: int) -> None:
    with pytest.raises(IndexError, match=f"row {index}: train has 5 rows"):
        cache_format.open(root).read_row("train", index)


def test_a_cache_without_rows_opens_and_verifies(tmp_path: Path) -> None:
    CacheWriter.create_or_open(tmp_path, SPEC, sample_shared()).publish_manifest(0, complete=True)
    cache = cache_format.open(tmp_path)
    assert cache.num_rows("train") == 0
    assert list(cache.iter_rows("validation")) == []
    assert cache.attachments() == {}
    assert verify(cache) == []


def test_reading_without_the_sketch_leaves_it_unread(tmp_path: Path) -> None:
    spec = write_sample_cache(tmp_path, sample_spec(with_sketch=False))
    _, row = cache_format.open(tmp_path).read_row("train", 0)
    assert_decoded(row, unit_rows(1, spec)[0], spec)


def test_rows_do_not_share_memory_with_the_next_read(root: Path) -> None:
    cache = cache_format.open(root)
    first = cache.read_row("train", 0)[1]
    for value in (*vars(first).values(), *vars(first.kept).values()):
        if isinstance(value, np.ndarray):
            value[:] = 0
    assert_decoded(cache.read_row("train", 0)[1], unit_rows(1, SPEC)[0], SPEC)


def test_many_threads_read_the_same_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    writer = CacheWriter.create_or_open(tmp_path, SPEC, sample_shared())
    for unit in range(1, 9):
        if SPEC.split_of(unit) == "train":
            rows = [sample_row(100 * unit + i, SPEC) for i in range(6)]
            writer.write_unit(unit, rows, num_documents=1)
    writer.publish_manifest(0, complete=True)
    monkeypatch.setattr(shard_batches, "_BATCHES_KEPT", 2)
    cache = cache_format.open(tmp_path)
    num_rows = cache.num_rows("train")
    expected = [row for _, row in cache_format.open(tmp_path).iter_rows("train")]
    failures: list[BaseException] = []

    def read(offset: int) -> None:
        try:
            for step in range(3 * num_rows):
                index = (7 * step + offset) % num_rows
                assert_same_row(cache.read_row("train", index)[1], expected[index])
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=read, args=(offset,)) for offset in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []


def test_the_most_recent_batches_are_not_read_again(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = cache_format.open(root)
    cache.read_row("train", 0)
    shard_path(root, 1).unlink()
    cache.read_row("train", 1)
    with pytest.raises(MissingShardError):
        cache.read_row("train", 2)


def test_reading_writes_nothing(root: Path) -> None:
    def state() -> list[tuple[str, int, int]]:
        paths = [root, *sorted(root.rglob("*"))]
        return [(str(p), p.stat().st_mtime_ns, p.stat().st_size) for p in paths]

    before = state()
    cache = cache_format.open(root)
    list(cache.iter_rows("train"))
    cache.teacher_directory()
    verify(cache)
    assert state() == before


def test_a_directory_without_a_cache_is_refused(tmp_path: Path) -> None:
    (tmp_path / "other").write_text("")
    for path in (tmp_path, tmp_path / "nothing"):
        with pytest.raises(ForeignDirectoryError, match=r"not a cache: expected manifest\.json"):
            cache_format.open(path)


def test_opening_a_part_says_so_and_names_its_units(tmp_path: Path) -> None:
    writer = CacheWriter.create_or_open(tmp_path, SPEC, sample_shared())
    fill(writer, [1, 3])
    with pytest.raises(
        IncompleteCacheError, match=r"part.*units 1:2, 3:4;.*several parts, merge them"
    ) as e:
        cache_format.open(tmp_path)
    assert e.value.next_step.actions == (Action.FINISH_PARTS,)


def test_a_cache_still_being_written_is_refused_unless_allowed(tmp_path: Path) -> None:
    writer = CacheWriter.create_or_open(tmp_path, SPEC, sample_shared())
    fill(writer, [0, 1])
    for manifest in (False, True):
        if manifest:
            writer.publish_manifest(100, complete=False)
        with pytest.raises(IncompleteCacheError, match="2 shards are finished") as e:
            cache_format.open(tmp_path)
        assert "run stage one again: it resumes" in str(e.value)
        assert e.value.next_step.actions == (Action.RUN_STAGE_ONE,)
        cache = cache_format.open(tmp_path, allow_incomplete=True)
        assert not cache.manifest.complete
        assert cache.num_rows("train") == 5
        assert_decoded(cache.read_row("train", 4)[1], unit_rows(1, SPEC)[4], SPEC)
        assert cache.attachments() == {}
        assert verify(cache) == []
    writer.write_attachments(build_teacher)
    (tmp_path / "manifest.json").unlink()
    cache = cache_format.open(tmp_path, allow_incomplete=True)
    assert cache.attachment("config.json").exists()


def test_a_missing_shard_is_named(root: Path) -> None:
    path = shard_path(root, 1)
    path.unlink()
    with pytest.raises(
        MissingShardError, match=r"missing\. Delete .*only unit 1 is made again"
    ) as e:
        cache_format.open(root).read_row("train", 0)
    assert str(path) in str(e.value)
    assert [problem.path for problem in verify(cache_format.open(root))] == [path]


@pytest.mark.parametrize("by", [-1, 1])
def test_a_shard_of_another_size_is_refused(root: Path, by: int) -> None:
    path = shard_path(root, 1)
    data = path.read_bytes()
    path.write_bytes(data[:by] if by < 0 else data + b"\0")
    with pytest.raises(
        CorruptShardError, match=f"expected {len(data)} bytes, found {len(data) + by}"
    ):
        cache_format.open(root).read_row("train", 0)
    assert [problem.path for problem in verify(cache_format.open(root))] == [path]


def test_swapped_shards_are_refused(root: Path) -> None:
    first, second = shard_path(root, 0), shard_path(root, 1)
    data = first.read_bytes(), second.read_bytes()
    first.write_bytes(data[1])
    second.write_bytes(data[0])
    cache = cache_format.open(root)
    for split in ("train", "validation"):
        with pytest.raises(CorruptShardError):
            cache.read_row(split, 0)
    assert {problem.path for problem in verify(cache)} == {first, second}


def test_open_returns_a_cache(root: Path) -> None:
    assert isinstance(cache_format.open(root), Cache)
