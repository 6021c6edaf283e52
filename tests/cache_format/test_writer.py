"""Creating, opening, filling and extending a cache; everything that must not be lost or doubled."""

import hashlib
import math
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

import cache_format
from cache_format.codec.row_codec import Row
from cache_format.errors import (
    CorruptFileError,
    ForeignDirectoryError,
    SpecMismatchError,
    UnsupportedFormatError,
)
from cache_format.metadata import sealed_json
from cache_format.metadata.spec import CacheSpec
from cache_format.shard import encode_shard
from cache_format.storage.local import LocalStorage
from cache_format.writer import CacheWriter
from tests.support.sample_cache import (
    ROWS_OF_UNIT,
    build_teacher,
    contents,
    fill,
    sample_row,
    sample_shared,
    sample_spec,
    unit_rows,
    write_sample_cache,
)

SPEC = sample_spec()


@pytest.fixture
def written(tmp_path: Path) -> Path:
    """A complete cache."""
    write_sample_cache(tmp_path / "cache")
    return tmp_path / "cache"


def _no_rows() -> Iterator[Row]:
    raise AssertionError("a finished unit was made again")
    yield


def test_a_cache_has_exactly_these_files(written: Path) -> None:
    shards = [entry.file for entry in cache_format.open(written).manifest.shards]
    assert sorted(contents(written)) == sorted(
        [
            "manifest.json",
            "spec.json",
            "ranks.bin",
            "teacher/config.json",
            "teacher/templates/chat.jinja",
            "receipts/teacher.json",
            *(f"receipts/0000{unit}.json" for unit in ROWS_OF_UNIT),
            *shards,
        ]
    )
    for file in shards:
        unit, prefix = Path(file).stem.split("-")
        assert unit in {f"0000{unit}" for unit in ROWS_OF_UNIT}
        assert hashlib.sha256((written / file).read_bytes()).hexdigest().startswith(prefix)


def test_the_same_spec_gives_the_same_bytes_in_whatever_order(
    written: Path, tmp_path: Path
) -> None:
    other = tmp_path / "other"
    for units in ([3, 1], [2, 0]):
        writer = CacheWriter.create_or_open(other, SPEC, sample_shared())
        fill(writer, units)
        writer.write_attachments(build_teacher)
    writer.publish_manifest(num_tokens_requested=120, complete=True)
    assert contents(other) == contents(written)


def test_finished_units_are_not_written_again(written: Path) -> None:
    before = contents(written)
    writer = CacheWriter.create_or_open(written, SPEC, sample_shared())
    assert sorted(writer.finished_units()) == sorted(ROWS_OF_UNIT)
    for unit in ROWS_OF_UNIT:
        entry = writer.write_unit(unit, _no_rows(), num_documents=0)
        assert entry == writer.finished_units()[unit]
    writer.write_attachments(lambda directory: pytest.fail("made again"))
    writer.publish_manifest(num_tokens_requested=120, complete=True)
    assert contents(written) == before


def test_a_manifest_entry_describes_its_unit(written: Path) -> None:
    entry = CacheWriter.create_or_open(written, SPEC, sample_shared()).finished_units()[1]
    rows = unit_rows(1, SPEC)
    scored = [row.scored() for row in rows]
    assert (entry.unit, entry.split) == (1, "train")
    assert (entry.num_rows, entry.num_tokens) == (5, 60)
    assert (entry.num_documents, entry.num_skipped_documents) == (4, 1)
    assert (entry.num_dropped_tokens, entry.corpus_position) == (5, "a.parquet, documents 4 to 7")
    assert entry.num_bytes == (written / entry.file).stat().st_size
    statistics = entry.statistics
    assert statistics.num_scored == sum(int(mask.sum()) for mask in scored)
    assert statistics.sums.keys() == {"num_kept", "next_logprob", "kept_mass"}
    assert statistics.sums["num_kept"] == sum(len(row.kept.ids) for row in rows)
    logprobs = sum(float(r.kept.next_logprob[m].sum()) for r, m in zip(rows, scored, strict=True))
    assert statistics.sums["next_logprob"] == pytest.approx(logprobs, rel=1e-5)
    assert statistics.sums["kept_mass"] == pytest.approx(sum(map(_kept_mass, rows)), rel=1e-6)
    assert set(statistics.column_bytes) == {
        *("token_ids", "document_starts", "context", "num_kept", "kept"),
        *("tail_log_mass", "next_logprob", "sketch", "sketch_scale"),
    }
    for name, num_bytes in statistics.column_bytes.items():
        assert (num_bytes > 0) == (name != "context")
    assert sum(statistics.column_bytes.values()) < entry.num_bytes


def _kept_mass(row: Row) -> float:
    total, start = 0.0, 0
    for position, count in enumerate(row.kept.num_ids.tolist()):
        if count:
            kept = sum(math.exp(-gap) for gap in row.kept.gaps[start : start + count].tolist())
            total += kept / (kept + math.exp(row.kept.tail_log_mass[position, -1]))
            start += count
    return total


def test_column_bytes_equal_the_encoded_column_sizes() -> None:
    shard = encode_shard([sample_row(i, SPEC) for i in range(40)], SPEC, sample_shared(), 0)
    batches = sum(segment.length for segment in shard.segments[1:])
    framing = 20 * 900  # what Arrow writes about each of the 20 batches
    assert 0 < batches - sum(shard.statistics.column_bytes.values()) < framing


def test_rows_may_come_from_an_iterator(tmp_path: Path) -> None:
    writer = CacheWriter.create_or_open(tmp_path / "cache", SPEC, sample_shared())
    entry = writer.write_unit(0, iter(unit_rows(0, SPEC)), num_documents=1)
    assert entry.num_rows == ROWS_OF_UNIT[0]


def test_a_row_that_breaks_a_rule_is_named_and_nothing_is_written(tmp_path: Path) -> None:
    writer = CacheWriter.create_or_open(tmp_path / "cache", SPEC, sample_shared())
    before = contents(tmp_path)
    rows = unit_rows(0, SPEC)
    rows[2] = _with_rising_logits(rows[2])
    with pytest.raises(ValueError, match=r"row 2: gaps: position .*expected a finite gap"):
        writer.write_unit(0, rows, num_documents=1)
    assert contents(tmp_path) == before


def _with_rising_logits(row: Row) -> Row:
    return replace(row, kept_ids=replace(row.kept, gaps=-row.kept.gaps))


def test_rows_encoded_in_threads_give_the_same_entry(tmp_path: Path) -> None:
    entries = []
    with ThreadPoolExecutor(3) as pool:
        for name, options in (("serial", None), ("threads", pool)):
            writer = CacheWriter.create_or_open(tmp_path / name, SPEC, sample_shared())
            rows = iter(unit_rows(1, SPEC))
            entries.append(writer.write_unit(1, rows, num_documents=1, pool=options))
        assert entries[0] == entries[1]
        assert contents(tmp_path / "serial") == contents(tmp_path / "threads")
        wrong = unit_rows(0, SPEC)
        wrong[2] = _with_rising_logits(wrong[2])
        with pytest.raises(ValueError, match=r"row 2: gaps: position"):
            writer.write_unit(0, wrong, num_documents=1, pool=pool)
    assert contents(tmp_path / "serial") == contents(tmp_path / "threads")


def test_a_larger_budget_adds_units_to_the_manifest(written: Path) -> None:
    before = contents(written)
    writer = CacheWriter.create_or_open(written, SPEC, sample_shared())
    writer.write_unit(4, [sample_row(9, SPEC)], num_documents=1)
    manifest = writer.publish_manifest(num_tokens_requested=1000, complete=True)
    assert [entry.unit for entry in manifest.shards] == [0, 1, 2, 3, 4]
    after = contents(written)
    assert {name: after[name] for name in before if name != "manifest.json"} == {
        name: digest for name, digest in before.items() if name != "manifest.json"
    }


@pytest.mark.parametrize("damage", ["missing", "cut", "receipt cut", "receipt gone", "discarded"])
def test_only_an_incomplete_unit_is_written_again(written: Path, damage: str) -> None:
    before = contents(written)
    writer = CacheWriter.create_or_open(written, SPEC, sample_shared())
    entry = writer.finished_units()[1]
    shard, receipt = written / entry.file, written / "receipts/00001.json"
    if damage == "missing":
        shard.unlink()
    elif damage == "cut":
        shard.write_bytes(shard.read_bytes()[:-1])
    elif damage == "receipt cut":
        receipt.write_bytes(receipt.read_bytes()[:-1])
    elif damage == "receipt gone":
        receipt.unlink()
    else:
        writer.discard_unit(1)
        assert not shard.exists()
        assert not receipt.exists()
    assert sorted(writer.finished_units()) == [0, 2, 3]
    for unit in (0, 2, 3):
        writer.write_unit(unit, _no_rows(), num_documents=0)
    fill(writer, [1])
    assert contents(written) == before


def test_leftovers_of_a_killed_writer_are_removed_when_its_unit_is_written(written: Path) -> None:
    before = contents(written)
    writer = CacheWriter.create_or_open(written, SPEC, sample_shared())
    writer.discard_unit(1)
    (written / "shards/00001-0123456789abcdef.arrow").write_bytes(b"made by a killed process")
    fill(writer, [1])
    assert contents(written) == before


def test_the_slower_of_two_processes_keeps_the_unit_of_the_faster(
    written: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer, rival = (CacheWriter.create_or_open(written, SPEC, sample_shared()) for _ in range(2))
    others = [sample_row(77, SPEC)]

    def rows() -> Iterator[Row]:
        rival.write_unit(5, others, num_documents=9)
        yield sample_row(78, SPEC)

    entry = writer.write_unit(5, rows(), num_documents=8)
    assert entry.num_documents == 9
    assert entry == rival.finished_units()[5]
    assert [path.name for path in (written / "shards").glob("00005-*")] == [Path(entry.file).name]


def test_another_spec_is_refused_naming_every_field(written: Path) -> None:
    before = contents(written)
    other = replace(SPEC, seed=8, teacher=replace(SPEC.teacher, revision="r2"))
    for remove_spec in (False, True):
        if remove_spec:
            (written / "spec.json").unlink()
        with pytest.raises(SpecMismatchError) as caught:
            CacheWriter.create_or_open(written, other, sample_shared())
        message = str(caught.value)
        assert str(written) in message
        assert "teacher.revision: expected 'r2', found 'r1'" in message
        assert "seed: expected 8, found 7" in message
        assert "another directory" in message
    before.pop("spec.json")
    assert contents(written) == before


def test_a_missing_spec_is_restored_from_the_manifest(written: Path) -> None:
    before = contents(written)
    (written / "spec.json").unlink()
    CacheWriter.create_or_open(written, SPEC, sample_shared())
    assert contents(written) == before


def test_a_foreign_directory_is_refused_and_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(ForeignDirectoryError, match=r"thesis\.tex.*another directory"):
        CacheWriter.create_or_open(tmp_path, SPEC, sample_shared())
    with pytest.raises(ForeignDirectoryError, match="it is a file"):
        CacheWriter.create_or_open(tmp_path / "thesis.tex", SPEC, sample_shared())
    assert list(contents(tmp_path)) == ["thesis.tex"]


def test_two_processes_may_create_one_cache_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is there in full when this process lists the directory."""
    path = tmp_path / "cache"
    path.mkdir()
    real = os.listdir

    def listdir(directory: Path) -> list[str]:
        monkeypatch.setattr(os, "listdir", real)
        write_sample_cache(path)
        return real(directory)

    monkeypatch.setattr(os, "listdir", listdir)
    writer = CacheWriter.create_or_open(path, SPEC, sample_shared())
    assert sorted(writer.finished_units()) == sorted(ROWS_OF_UNIT)


def test_a_cache_is_created_in_an_empty_or_new_directory(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty/.tmp-of-a-killed-process").write_bytes(b"")
    for path in (tmp_path / "empty", tmp_path / "deep" / "new", str(tmp_path / "text")):
        writer = CacheWriter.create_or_open(path, SPEC, sample_shared())
        assert writer.finished_units() == {}
        assert sorted(p.name for p in Path(path).iterdir()) == [
            *("ranks.bin", "receipts", "shards", "spec.json")
        ]


def test_a_damaged_spec_is_named(written: Path) -> None:
    (written / "spec.json").write_text("{}")
    with pytest.raises(CorruptFileError, match=r"spec\.json: damaged.*delete this file"):
        CacheWriter.create_or_open(written, SPEC, sample_shared())


def test_a_cache_of_another_major_version_is_refused(written: Path) -> None:
    path = written / "spec.json"
    fields = sealed_json.unseal(path.read_bytes(), path, "")
    path.write_bytes(sealed_json.seal(fields | {"format_version": "1.2"}))
    with pytest.raises(UnsupportedFormatError, match=r"spec\.json: format version 1\.2"):
        CacheWriter.create_or_open(written, SPEC, sample_shared())


def test_the_manifest_includes_units_finished_by_other_processes(
    written: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, rivals = LocalStorage.publish, [6, 7]
    writer = CacheWriter.create_or_open(written, SPEC, sample_shared())

    def publish(storage: LocalStorage, name: str, data: bytes) -> None:
        if rivals:
            writer.write_unit(rivals.pop(), [], num_documents=0)
        real(storage, name, data)

    monkeypatch.setattr(LocalStorage, "publish", publish)
    writer.publish_manifest(1, complete=True)
    units = [entry.unit for entry in cache_format.open(written).manifest.shards]
    assert units == [0, 1, 2, 3, 6, 7]


def test_a_cache_without_hidden_states_has_no_sketch_columns(tmp_path: Path) -> None:
    spec: CacheSpec = write_sample_cache(tmp_path / "cache", sample_spec(with_sketch=False))
    cache = cache_format.open(tmp_path / "cache")
    assert cache.spec == spec
    assert "sketch" not in cache.manifest.shards[0].statistics.column_bytes


def test_a_unit_written_elsewhere_is_adopted_once(written: Path, tmp_path: Path) -> None:
    manifest = cache_format.open(written).manifest
    entry = manifest.shards[1]
    receipt = (written / "receipts/00001.json").read_bytes()
    writer = CacheWriter.create_or_open(tmp_path / "new", SPEC, sample_shared())
    (tmp_path / "new/receipts/00001.json").write_bytes(b"{}")  # nothing whole is behind it
    (tmp_path / "new/shards/00001-leftover.arrow").touch()
    (tmp_path / "new" / entry.file).write_bytes((written / entry.file).read_bytes())
    assert writer.adopt_unit(entry, receipt) == entry
    assert writer.finished_units() == {1: entry}
    assert [path.name for path in (tmp_path / "new/shards").iterdir()] == [Path(entry.file).name]
    other = replace(entry, num_documents=7)
    assert writer.adopt_unit(other, b"another receipt") == entry
    assert (tmp_path / "new/receipts/00001.json").read_bytes() == receipt
