"""A shard of another cache with a receipt that fits it: found wherever whole shards are read."""

import io
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

import cache_format
from cache_format.errors import CorruptArchiveError, CorruptShardError
from cache_format.metadata.manifest import fold
from cache_format.metadata.receipt import Receipt, read_receipt, receipt_bytes
from cache_format.storage.local import LocalStorage
from cache_format.tools import archive
from cache_format.tools.checked_shard import checked_shard
from cache_format.tools.merge import merge
from cache_format.tools.verify import verify
from tests.support.sample_cache import sample_spec, shard_path, write_sample_cache

SPEC = sample_spec()
FOREIGN = r"00001-.*\.arrow: not this cache's shard of unit 1: its schema says cache_id "


@pytest.fixture
def mixed(root: Path, tmp_path: Path) -> Path:
    """The sample cache, its unit 1 replaced by that of another cache; only the shard tells."""
    other_spec = write_sample_cache(tmp_path / "other", sample_spec(seed=8))
    other = LocalStorage(tmp_path / "other")
    shard_path(root, 1).unlink()
    shutil.copy(shard_path(tmp_path / "other", 1), root / "shards")
    receipt = read_receipt(other, 1, other_spec, None)
    _name_in_manifest(root, receipt)
    return root


def _name_in_manifest(root: Path, receipt: Receipt) -> None:
    unit = receipt.entry.unit
    (root / f"receipts/{unit:05d}.json").write_bytes(receipt_bytes(receipt, SPEC))
    storage, manifest = LocalStorage(root), cache_format.open(root).manifest
    entries = [read_receipt(storage, e.unit, SPEC, None).entry for e in manifest.shards]
    folded = fold(SPEC, entries, None, num_tokens_requested=120, complete=True)
    folded = replace(folded, teacher_receipt_sha256=manifest.teacher_receipt_sha256)
    (root / "manifest.json").write_bytes(folded.to_bytes())


def packed(root: Path) -> bytes:
    sink = io.BytesIO()
    archive.pack(cache_format.open(root), sink, num_threads=1, report=lambda done, total: None)
    return sink.getvalue()


def test_verify_names_it(mixed: Path) -> None:
    (problem,) = verify(cache_format.open(mixed))
    assert problem.path == shard_path(mixed, 1)
    assert problem.is_damage
    assert "not this cache's shard of unit 1: its schema says cache_id" in problem.message
    assert SPEC.cache_id in problem.message
    assert "run stage one again: only unit 1 is made again." in problem.next_step


def test_a_shard_of_another_unit(root: Path) -> None:
    """Of the same cache, yet not of the unit that it is named as."""
    receipt = read_receipt(LocalStorage(root), 0, SPEC, None)
    sha256 = receipt.entry.sha256
    file = f"shards/00003-{sha256[:16]}.arrow"
    shutil.copy(shard_path(root, 0), root / file)
    (path,) = (p for p in (root / "shards").glob("00003-*") if p != root / file)
    path.unlink()
    entry = replace(receipt.entry, unit=3, file=file)
    _name_in_manifest(root, replace(receipt, entry=entry))
    (problem,) = verify(cache_format.open(root))
    assert "its schema says unit 0, expected 3" in problem.message


def test_pack_stops_at_it(mixed: Path) -> None:
    with pytest.raises(CorruptShardError, match=FOREIGN):
        packed(mixed)


def test_unpack_does_not_publish_it(
    mixed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as unchecked:
        unchecked.setattr(archive, "checked_shard", _unchecked)
        data = packed(mixed)
    out = tmp_path / "out"
    with pytest.raises(CorruptArchiveError, match="its schema says cache_id"):
        archive.unpack(io.BytesIO(data), out, name="a", report=lambda done, total: None)
    assert [path.name for path in (out / "shards").iterdir()] == [shard_path(mixed, 0).name]
    assert not (out / "manifest.json").exists()


def _unchecked(storage: LocalStorage, receipt: Receipt, spec: object) -> list[bytes]:
    return [storage.read(receipt.entry.file)]


@pytest.mark.parametrize("place", ["directory", "URL"])
def test_merge_does_not_take_it(mixed: Path, tmp_path: Path, place: str) -> None:
    out = tmp_path / "out" if place == "directory" else f"memory://{tmp_path.name}/out"
    with pytest.raises(CorruptShardError, match=FOREIGN):
        merge([cache_format.open(mixed)], out)
    found = cache_format.open(out, allow_incomplete=True)
    assert [entry.unit for entry in found.manifest.shards] == [0]
    assert len(found.storage.list_names("shards")) == 1


@pytest.mark.parametrize("length", [0, 7, 1 << 40])
def test_segments_that_hold_no_schema(root: Path, length: int) -> None:
    receipt = read_receipt(LocalStorage(root), 1, SPEC, None)
    first = receipt.segments[0]._replace(length=length)
    receipt = replace(receipt, segments=(first, *receipt.segments[1:]))
    with pytest.raises(CorruptShardError, match="not this cache's shard of unit 1: "):
        list(checked_shard(LocalStorage(root), receipt, SPEC))
