"""Files in each other's place, changed under an open cache, or lying on another disk."""

import hashlib
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import cache_format
from cache_format.errors import CacheError, CorruptFileError, CorruptShardError, StorageError
from cache_format.metadata.spec import Split
from cache_format.reader import Cache
from cache_format.tools.verify import verify
from cache_format.writer import CacheWriter
from tests.support.sample_cache import (
    assert_same_row,
    contents,
    fill,
    reseal,
    sample_shared,
    sample_spec,
    shard_path,
    unit_rows,
    write_sample_cache,
)

SPEC = sample_spec()
SPLITS: tuple[Split, Split] = ("train", "validation")


@pytest.fixture
def other(tmp_path: Path) -> Path:
    """A cache of the same corpus with another seed: other bytes, but the same units."""
    write_sample_cache(tmp_path / "other", replace(SPEC, seed=8))
    return tmp_path / "other"


def _receipt(root: Path, unit: int) -> Path:
    return root / f"receipts/{unit:05d}.json"


def _adopt(root: Path, units: list[int]) -> None:
    """Let receipts and manifest name what is there, sealed, as a faulty program might."""
    facts: dict[int, tuple[str, int, str]] = {}
    for unit in units:
        data = shard_path(root, unit).read_bytes()
        digest = hashlib.sha256(data).hexdigest()
        file = f"shards/{unit:05d}-{digest[:16]}.arrow"
        shard_path(root, unit).rename(root / file)
        facts[unit] = (file, len(data), digest)

    def rename(fields: dict[str, Any]) -> None:
        fields["file"], fields["num_bytes"], fields["sha256"] = facts[fields["unit"]]

    for unit in units:
        reseal(_receipt(root, unit), rename)

    def manifest(fields: dict[str, Any]) -> None:
        for shard in fields["shards"]:
            if shard["unit"] in facts:
                rename(shard)
                data = _receipt(root, shard["unit"]).read_bytes()
                shard["receipt_sha256"] = hashlib.sha256(data).hexdigest()

    reseal(root / "manifest.json", manifest)


def _exchange(first: Path, second: Path) -> None:
    data = first.read_bytes()
    first.write_bytes(second.read_bytes())
    second.write_bytes(data)


def _swap_shards(root: Path, other: Path) -> None:
    _exchange(shard_path(root, 0), shard_path(root, 1))


def _swap_receipts(root: Path, other: Path) -> None:
    _exchange(_receipt(root, 0), _receipt(root, 1))


def _swap_receipts_of_one_split(root: Path, other: Path) -> None:
    _exchange(_receipt(root, 0), _receipt(root, 3))


def _swap_both(root: Path, other: Path) -> None:
    """Each receipt fits its shard, but neither fits its name."""
    _swap_shards(root, other)
    _swap_receipts(root, other)


def _take_shard(root: Path, other: Path) -> None:
    shard_path(root, 0).write_bytes(shard_path(other, 0).read_bytes())
    shard_path(root, 1).write_bytes(shard_path(other, 1).read_bytes())


def _take_both(root: Path, other: Path) -> None:
    for unit in (0, 1):
        shard_path(root, unit).unlink()
        shutil.copy(shard_path(other, unit), root / "shards")
        shutil.copy(_receipt(other, unit), root / "receipts")


def _take_older_shard(root: Path, other: Path) -> None:
    """The same cache and unit, other rows: as if two machines had made it."""
    again = other.parent / "again"
    writer = CacheWriter.create_or_open(again, SPEC, sample_shared())
    for unit in (0, 1):
        writer.write_unit(unit, list(reversed(unit_rows(unit, SPEC))), num_documents=4)
        shard_path(root, unit).write_bytes(shard_path(again, unit).read_bytes())


@pytest.mark.parametrize(
    "exchange",
    [_swap_shards, _swap_receipts, _swap_both, _take_shard, _take_both, _take_older_shard],
)
def test_exchanged_shards_or_receipts_are_refused(
    root: Path, other: Path, exchange: Callable[[Path, Path], None]
) -> None:
    exchange(root, other)
    cache = cache_format.open(root)
    assert {entry.unit for entry in cache.manifest.shards} == {0, 1, 2, 3}
    for split in SPLITS:
        with pytest.raises(CacheError, match=r"0000[01]\b.*(SHA-256|damaged|missing)"):
            cache.read_row(split, 0)
    wrong = {Path(problem.path).name[:5] for problem in verify(cache)}
    assert wrong == {"00000", "00001"}


@pytest.mark.parametrize(
    ("exchange", "message"),
    [
        (_swap_receipts, "is of unit 1 .*expected unit 0"),
        (_swap_receipts_of_one_split, "is of unit 3 .*expected unit 0"),
        (_take_both, "belongs to another cache"),
    ],
)
def test_exchanged_receipts_of_an_unfinished_cache_are_refused(
    root: Path, other: Path, exchange: Callable[[Path, Path], None], message: str
) -> None:
    before = contents(root)
    (root / "manifest.json").unlink()
    exchange(root, other)
    with pytest.raises(CorruptFileError, match=rf"00000\.json: {message}"):
        cache_format.open(root, allow_incomplete=True)
    write_sample_cache(root)
    assert contents(root) == before


def test_shards_exchanged_together_with_their_receipts_are_refused(root: Path) -> None:
    """Every hash fits; the shards themselves say which unit they are of."""
    _exchange(shard_path(root, 0), shard_path(root, 1))
    first, second = (dict(_fields(root, unit)) for unit in (0, 1))
    _take_layout(root, 0, second)
    _take_layout(root, 1, first)
    _adopt(root, [0, 1])
    for split, unit in (("validation", 0), ("train", 1)):
        with pytest.raises(CorruptShardError, match=f"says unit .*{1 - unit}.*expected .*{unit}"):
            cache_format.open(root).read_row(split, 0)  # type: ignore[arg-type]


def test_a_shard_of_another_cache_with_a_sealed_receipt_is_refused(root: Path, other: Path) -> None:
    shard_path(root, 1).write_bytes(shard_path(other, 1).read_bytes())
    _take_layout(root, 1, _fields(other, 1))
    _adopt(root, [1])
    with pytest.raises(CorruptShardError, match="its schema says cache_id"):
        cache_format.open(root).read_row("train", 0)


_LAYOUT = {"num_rows", "num_tokens", "blocks", "segments"}


def _fields(root: Path, unit: int) -> dict[str, Any]:
    found: dict[str, Any] = {}
    reseal(_receipt(root, unit), found.update)
    return {key: value for key, value in found.items() if key in _LAYOUT}


def _take_layout(root: Path, unit: int, layout: dict[str, Any]) -> None:
    reseal(_receipt(root, unit), lambda fields: fields.update(layout))

    def manifest(fields: dict[str, Any]) -> None:
        (shard,) = (shard for shard in fields["shards"] if shard["unit"] == unit)
        shard.update({key: layout[key] for key in ("num_rows", "num_tokens")})

    reseal(root / "manifest.json", manifest)


@pytest.mark.parametrize(
    "file",
    ["/etc/passwd", "../other/shards/{name}", "shards/../{name}", "{name}", "{cache}/{name}"],
)
@pytest.mark.parametrize("in_manifest", [True, False])
def test_shard_paths_that_lead_out_of_the_cache_are_refused(
    root: Path, other: Path, file: str, in_manifest: bool
) -> None:
    path = root / ("manifest.json" if in_manifest else "receipts/00001.json")
    file = file.format(name=shard_path(root, 1).name, cache=root)

    def change(fields: dict[str, Any]) -> None:
        (fields["shards"][1] if in_manifest else fields).update(file=file)

    reseal(path, change)
    if not in_manifest:
        (root / "manifest.json").unlink()
    with pytest.raises(CorruptFileError, match=r"file: expected 'shards/00001-") as caught:
        cache_format.open(root, allow_incomplete=True)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    "what", ["shard", "shards", "receipts", "teacher", "manifest.json", "root"]
)
def test_links_to_another_disk_are_followed(root: Path, tmp_path: Path, what: str) -> None:
    """What they lead to is compared with its hash like everything else."""
    expected = [row for _, row in cache_format.open(root).iter_rows("train")]
    path = {"shard": shard_path(root, 1), "root": root}.get(what, root / what)
    elsewhere = tmp_path / "elsewhere"
    path.rename(elsewhere)
    path.symlink_to(elsewhere, target_is_directory=elsewhere.is_dir())
    before = contents(elsewhere if what == "root" else root)
    cache = cache_format.open(root)
    for found, row in zip(cache.iter_rows("train"), expected, strict=True):
        assert_same_row(found[1], row)
    assert (cache.teacher_directory() / "config.json").exists()
    assert verify(cache) == []
    write_sample_cache(root)
    assert path.is_symlink() or what == "manifest.json"
    assert contents(elsewhere if what == "root" else root) == before
    if what in {"shard", "shards"}:
        shard_path(root, 1).write_bytes(b"x" * shard_path(root, 1).stat().st_size)
        with pytest.raises(CorruptShardError, match=r"00001-.*damaged"):
            cache_format.open(root).read_row("train", 0)


@pytest.mark.parametrize("what", ["shards", "receipts", "teacher"])
def test_a_link_to_a_missing_disk_is_named(root: Path, tmp_path: Path, what: str) -> None:
    """Nothing of the cache is called damaged, and no unit is made in its place."""
    (root / what).rename(tmp_path / "unmounted")
    (root / what).symlink_to(tmp_path / "mount")
    cache = cache_format.open(root)
    with pytest.raises(CacheError, match=rf"{what}/.*missing"):
        cache.teacher_directory() if what == "teacher" else cache.read_row("train", 0)
    assert verify(cache)
    before = contents(root)
    if what != "teacher":  # which would be made again in place of the link
        with pytest.raises(StorageError, match=rf"{what}: .*a disk that is not mounted"):
            write_sample_cache(root)
        assert contents(root) == before


def _read(cache: Cache) -> None:
    for split in SPLITS:
        list(cache.iter_rows(split))


@pytest.mark.parametrize("what", ["shard", "receipt", "teacher/config.json"])
def test_files_changed_under_an_open_cache_never_give_wrong_rows(root: Path, what: str) -> None:
    """All was read and found whole before; a receipt is not needed a second time."""
    cache = cache_format.open(root)
    rows = [row for _, row in cache.iter_rows("train")]
    cache.teacher_directory()
    path = {"shard": shard_path(root, 1), "receipt": _receipt(root, 1)}.get(what, root / what)
    times = path.stat()
    path.write_bytes(bytes(byte ^ 1 for byte in path.read_bytes()))
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    for index, row in enumerate(rows):  # those of the last record batches are remembered
        try:
            found = cache.read_row("train", index)[1]
        except CorruptShardError:
            continue
        assert_same_row(found, row)
    assert [problem.path for problem in verify(cache)] == [path]
    if what.startswith("teacher"):
        with pytest.raises(CorruptFileError, match=r"config\.json: damaged"):
            cache.attachment("config.json")
        with pytest.raises(CorruptFileError, match=r"config\.json: damaged"):
            cache.teacher_directory()


def test_a_changed_shard_is_an_error_once_its_rows_leave_memory(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cache_format.shard_batches._BATCHES_KEPT", 1)
    cache = cache_format.open(root)
    _read(cache)
    path = shard_path(root, 1)
    path.write_bytes(bytes(byte ^ 1 for byte in path.read_bytes()))
    for index in range(4):
        with pytest.raises(CorruptShardError, match=r"00001-.*damaged"):
            cache.read_row("train", index)
    path.unlink()
    with pytest.raises(CacheError, match="missing"):
        cache.read_row("train", 0)


def test_a_unit_rewritten_with_other_bytes_under_an_open_cache_is_refused(root: Path) -> None:
    """The reader keeps to the manifest that it opened: an error, never a mixture."""
    cache = cache_format.open(root)
    writer = CacheWriter.create_or_open(root, SPEC, sample_shared())
    writer.discard_unit(1)
    writer.write_unit(1, list(reversed(unit_rows(1, SPEC))), num_documents=4)
    writer.publish_manifest(120, complete=True)
    for index in range(5):
        with pytest.raises(CacheError, match=r"00001.*(not the file that the manifest names)"):
            cache.read_row("train", index)
    fill(writer, [1])
    assert verify(cache_format.open(root)) == []
