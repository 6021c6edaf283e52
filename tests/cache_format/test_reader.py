"""Reading rows by split and index, attachments, incomplete caches, verification."""

import hashlib
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import cache_format
from cache_format import plain, reader
from cache_format.errors import (
    CacheError,
    CorruptFileError,
    CorruptShardError,
    ForeignDirectoryError,
    IncompleteCacheError,
    MissingFileError,
    MissingShardError,
    UnsupportedFormatError,
)
from cache_format.reader import Cache
from cache_format.writer import CacheWriter
from tests.cache_format.sample_cache import (
    assert_decoded,
    assert_same_row,
    build_teacher,
    fill,
    sample_row,
    sample_spec,
    unit_rows,
    write_sample_cache,
)

SPEC = sample_spec()


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A complete cache; units 0, 3 are validation, 1 and 2 (which is empty) train."""
    write_sample_cache(tmp_path / "cache")
    return tmp_path / "cache"


def _entry_path(root: Path, unit: int) -> Path:
    (path,) = (root / "shards").glob(f"{unit:05d}-*.arrow")
    return path


def _reseal(path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    fields = plain.unseal(path.read_bytes(), path, "")
    change(fields)
    path.write_bytes(plain.seal(fields))


@pytest.mark.parametrize("with_sketch", [True, False])
def test_rows_by_split_and_index(root: Path, with_sketch: bool) -> None:
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


def test_what_a_cache_tells(root: Path) -> None:
    cache = cache_format.open(root)
    assert cache.path == root
    assert cache.spec == SPEC
    assert cache.cache_id == cache.manifest.cache_id == SPEC.cache_id
    assert cache.manifest.format_version == "1.0"
    assert cache.manifest.complete
    assert cache.manifest.num_tokens_requested == 120
    assert [entry.unit for entry in cache.shards("train")] == [1, 2]
    assert [entry.unit for entry in cache.shards("validation")] == [0, 3]


@pytest.mark.parametrize("index", [-1, 5])
def test_rows_that_are_not_there(root: Path, index: int) -> None:
    with pytest.raises(IndexError, match=f"row {index}: train has 5 rows"):
        cache_format.open(root).read_row("train", index)


def test_a_cache_without_rows(tmp_path: Path) -> None:
    CacheWriter.create_or_open(tmp_path, SPEC).publish_manifest(0, complete=True)
    cache = cache_format.open(tmp_path)
    assert cache.num_rows("train") == 0
    assert list(cache.iter_rows("validation")) == []
    assert cache.attachments() == {}
    assert cache.verify() == []


def test_without_sketch(tmp_path: Path) -> None:
    spec = write_sample_cache(tmp_path, sample_spec(with_sketch=False))
    _, row = cache_format.open(tmp_path).read_row("train", 0)
    assert_decoded(row, unit_rows(1, spec)[0], spec)


def test_rows_do_not_share_memory_with_the_next_read(root: Path) -> None:
    cache = cache_format.open(root)
    first = cache.read_row("train", 0)[1]
    for value in vars(first).values():
        value[:] = 0
    assert_decoded(cache.read_row("train", 0)[1], unit_rows(1, SPEC)[0], SPEC)


def test_many_threads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    writer = CacheWriter.create_or_open(tmp_path, SPEC)
    for unit in range(1, 9):
        if SPEC.split_of(unit) == "train":
            rows = [sample_row(100 * unit + i, SPEC) for i in range(6)]
            writer.write_unit(unit, rows, num_documents=1)
    writer.publish_manifest(0, complete=True)
    monkeypatch.setattr(reader, "_BATCHES_KEPT", 2)
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


def test_the_last_batches_are_not_read_again(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = cache_format.open(root)
    cache.read_row("train", 0)
    _entry_path(root, 1).unlink()
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
    cache.verify()
    assert state() == before


# What is refused on opening


def test_no_cache(tmp_path: Path) -> None:
    (tmp_path / "other").write_text("")
    for path in (tmp_path, tmp_path / "nothing"):
        with pytest.raises(ForeignDirectoryError, match=r"no cache: expected manifest\.json"):
            cache_format.open(path)


def test_a_cache_that_is_still_being_written(tmp_path: Path) -> None:
    writer = CacheWriter.create_or_open(tmp_path, SPEC)
    fill(writer, [0, 1])
    for manifest in (False, True):
        if manifest:
            writer.publish_manifest(100, complete=False)
        with pytest.raises(IncompleteCacheError, match=r"2 shards are finished.*command again"):
            cache_format.open(tmp_path)
        cache = cache_format.open(tmp_path, allow_incomplete=True)
        assert not cache.manifest.complete
        assert cache.num_rows("train") == 5
        assert_decoded(cache.read_row("train", 4)[1], unit_rows(1, SPEC)[4], SPEC)
        assert cache.attachments() == {}
        assert cache.verify() == []
    writer.write_attachments(build_teacher)
    (tmp_path / "manifest.json").unlink()
    cache = cache_format.open(tmp_path, allow_incomplete=True)
    assert cache.attachment("config.json").exists()


def test_another_major_version(root: Path) -> None:
    _reseal(root / "manifest.json", lambda fields: fields.update(format_version="2.0"))
    with pytest.raises(UnsupportedFormatError, match=r"manifest\.json: format version 2\.0"):
        cache_format.open(root)


def test_a_later_minor_version_with_more_fields(root: Path) -> None:
    def later(fields: dict[str, Any]) -> None:
        fields.update(format_version="1.9", new_field=[1])
        fields["shards"][1]["new_field"] = {"a": 1}
        fields["shards"][1]["statistics"]["new_field"] = 2

    _reseal(root / "manifest.json", later)
    cache = cache_format.open(root)
    assert_decoded(cache.read_row("train", 0)[1], unit_rows(1, SPEC)[0], SPEC)


def _set_spec(fields: dict[str, Any], **changes: Any) -> None:
    fields["spec"] |= changes


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (lambda f: _set_spec(f, new=1), UnsupportedFormatError, "spec .*: new: not a known field"),
        (lambda f: _set_spec(f, seed="x"), UnsupportedFormatError, "seed: expected int, found 'x'"),
        (lambda f: _set_spec(f, seed=8), CorruptFileError, "cache_id is .* but its spec has"),
        (lambda f: f.pop("shards"), CorruptFileError, "shards: missing"),
        (lambda f: f["shards"].reverse(), CorruptFileError, "units do not rise"),
        (lambda f: f["shards"].append(f["shards"][-1]), CorruptFileError, "units do not rise"),
        (lambda f: f["shards"][0].update(split="train"), CorruptFileError, "unit 0: wrong split"),
        (
            lambda f: f["shards"][0].update(split="test"),
            CorruptFileError,
            "expected .*found 'test'",
        ),
        (
            lambda f: f["shards"][0].update(file="../../secret.arrow"),
            CorruptFileError,
            "file: expected 'shards/00000-.*found '../../secret.arrow'",
        ),
        (lambda f: f["shards"][0].update(num_rows=-1), CorruptFileError, "must not be negative"),
        (lambda f: f["shards"][0].update(sha256="0"), CorruptFileError, "expected 64 hex digits"),
    ],
)
def test_a_manifest_that_breaks_a_rule(
    root: Path,
    change: Callable[[dict[str, Any]], None],
    error: type[CacheError],
    message: str,
) -> None:
    _reseal(root / "manifest.json", change)
    with pytest.raises(error, match=message) as caught:
        cache_format.open(root)
    assert str(root / "manifest.json") in str(caught.value)


# What is refused on reading


def test_a_missing_shard(root: Path) -> None:
    path = _entry_path(root, 1)
    path.unlink()
    with pytest.raises(
        MissingShardError, match=r"missing\. Delete .*only unit 1 is made again"
    ) as e:
        cache_format.open(root).read_row("train", 0)
    assert str(path) in str(e.value)
    assert [problem.path for problem in cache_format.open(root).verify()] == [path]


@pytest.mark.parametrize("by", [-1, 1])
def test_a_shard_of_another_size(root: Path, by: int) -> None:
    path = _entry_path(root, 1)
    data = path.read_bytes()
    path.write_bytes(data[:by] if by < 0 else data + b"\0")
    with pytest.raises(
        CorruptShardError, match=f"expected {len(data)} bytes, found {len(data) + by}"
    ):
        cache_format.open(root).read_row("train", 0)
    assert [problem.path for problem in cache_format.open(root).verify()] == [path]


def test_swapped_shards(root: Path) -> None:
    first, second = _entry_path(root, 0), _entry_path(root, 1)
    data = first.read_bytes(), second.read_bytes()
    first.write_bytes(data[1])
    second.write_bytes(data[0])
    cache = cache_format.open(root)
    for split in ("train", "validation"):
        with pytest.raises(CorruptShardError):
            cache.read_row(split, 0)
    assert {problem.path for problem in cache.verify()} == {first, second}


def _as_of_unit_2(fields: dict[str, Any]) -> None:
    fields.update(unit=2, file=f"shards/00002-{fields['sha256'][:16]}.arrow", num_rows=5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda f: f["blocks"].pop(), "its blocks do not fit its shard"),
        (lambda f: f["blocks"][1].__setitem__(0, -1), "its blocks do not fit its shard"),
        (lambda f: f["blocks"][1].__setitem__(1, 10**9), "its blocks do not fit its shard"),
        (lambda f: f["blocks"][1].pop(), r"\[1\]: expected tuple"),
        (lambda f: f.pop("blocks"), "expected tuple"),
        (lambda f: f.update(cache_id="0" * 64), "belongs to another cache"),
        (_as_of_unit_2, "is of unit 2 .*expected unit 1"),
    ],
)
def test_a_receipt_that_breaks_a_rule(
    root: Path, change: Callable[[dict[str, Any]], None], message: str
) -> None:
    """Sealed and named by the manifest, hence written so by a faulty program."""
    path = root / "receipts/00001.json"
    _reseal(path, change)
    _adopt_receipts(root)
    with pytest.raises(CorruptFileError, match=message) as caught:
        cache_format.open(root).read_row("train", 0)
    assert str(path) in str(caught.value)


def test_a_receipt_that_the_manifest_does_not_name(root: Path) -> None:
    path = root / "receipts/00001.json"
    _reseal(path, lambda fields: fields.update(num_documents=99))
    with pytest.raises(CorruptFileError, match="not the file that the manifest names") as caught:
        cache_format.open(root).read_row("train", 0)
    assert str(path) in str(caught.value)
    assert [problem.path for problem in cache_format.open(root).verify()] == [path]


def test_a_missing_receipt(root: Path) -> None:
    path = root / "receipts/00001.json"
    path.unlink()
    with pytest.raises(MissingFileError, match=r"missing.*only unit 1 is made again"):
        cache_format.open(root).read_row("train", 0)
    assert [problem.path for problem in cache_format.open(root).verify()] == [path]


def _adopt_receipts(root: Path) -> None:
    def adopt(fields: dict[str, Any]) -> None:
        for shard in fields["shards"]:
            data = (root / f"receipts/{shard['unit']:05d}.json").read_bytes()
            shard["receipt_sha256"] = hashlib.sha256(data).hexdigest()

    _reseal(root / "manifest.json", adopt)


# Attachments


def test_attachments(root: Path) -> None:
    cache = cache_format.open(root)
    assert sorted(cache.attachments()) == ["config.json", "templates/chat.jinja"]
    assert cache.attachment("config.json").read_text() == '{"model_type": "sample"}'
    assert cache.teacher_directory() == root / "teacher"
    for name in ("nothing", "../manifest.json", "/etc/passwd"):
        with pytest.raises(MissingFileError, match="no such file of the teacher"):
            cache.attachment(name)


def test_damaged_attachments(root: Path) -> None:
    path = root / "teacher/config.json"
    path.write_text('{"model_type": "Sample"}')
    step = "Delete receipts/teacher.json and run"
    with pytest.raises(CorruptFileError, match=rf"config\.json: damaged.*{step}"):
        cache_format.open(root).attachment("config.json")
    with pytest.raises(CorruptFileError, match=r"config\.json: damaged"):
        cache_format.open(root).teacher_directory()
    assert [problem.path for problem in cache_format.open(root).verify()] == [path]
    path.unlink()
    with pytest.raises(MissingFileError, match=rf"config\.json: missing.*{step}"):
        cache_format.open(root).attachment("config.json")


@pytest.mark.parametrize("name", ["../x", "/x", "a/../x", ".x", "a//b", ""])
def test_a_teacher_receipt_that_names_paths_outside(root: Path, name: str) -> None:
    path = root / "receipts/teacher.json"
    _reseal(path, lambda fields: fields["files"].update({name: [0, "0" * 64]}))
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    _reseal(root / "manifest.json", lambda fields: fields.update(teacher_receipt_sha256=digest))
    with pytest.raises(CorruptFileError, match=r"teacher\.json: .*cannot be a file of a cache"):
        cache_format.open(root).attachments()


# Verification


def test_a_whole_cache_has_no_problems(root: Path) -> None:
    seen: list[tuple[int, int]] = []
    assert cache_format.open(root).verify(lambda done, total: seen.append((done, total))) == []
    total = sum(p.stat().st_size for d in ("shards", "teacher") for p in (root / d).rglob("*.*"))
    assert seen[-1] == (total, total)
    assert seen == sorted(seen)


def test_every_problem_is_named(root: Path) -> None:
    cut, missing, orphan = _entry_path(root, 1), _entry_path(root, 0), root / "shards/x.arrow"
    cut.write_bytes(cut.read_bytes()[:-1])
    missing.unlink()
    orphan.write_bytes(b"")
    (root / "shards/.tmp-half").write_bytes(b"half-written files are passed over")
    (root / "teacher/more").write_bytes(b"")
    (root / "spec.json").write_bytes(b"{}")
    seen: list[tuple[int, int]] = []
    problems = cache_format.open(root).verify(lambda done, total: seen.append((done, total)))
    assert [problem.path for problem in problems] == [
        root / "spec.json",
        missing,
        cut,
        orphan,
        root / "teacher/more",
    ]
    assert all(str(problem.path) in problem.message for problem in problems)
    assert "nothing refers to it" in problems[3].message
    assert seen[-1][0] == seen[-1][1]


def test_shards_finished_after_the_manifest_are_verified_too(root: Path) -> None:
    CacheWriter.create_or_open(root, SPEC).write_unit(4, [sample_row(0, SPEC)], num_documents=1)
    assert cache_format.open(root).verify() == []
    path = _entry_path(root, 4)
    path.write_bytes(path.read_bytes()[:-1])
    assert [problem.path for problem in cache_format.open(root).verify()] == [path]


def test_a_manifest_damaged_after_opening(root: Path) -> None:
    cache = cache_format.open(root)
    (root / "manifest.json").write_bytes(b"{}")
    assert [problem.path for problem in cache.verify()] == [root / "manifest.json"]


def test_a_spec_of_another_cache(root: Path, tmp_path: Path) -> None:
    CacheWriter.create_or_open(tmp_path / "other", replace(SPEC, seed=8))
    (root / "spec.json").write_bytes((tmp_path / "other/spec.json").read_bytes())
    (problem,) = cache_format.open(root).verify()
    assert problem.path == root / "spec.json"
    assert "of another cache" in problem.message


def test_cache_is_what_open_returns(root: Path) -> None:
    assert isinstance(cache_format.open(root), Cache)
