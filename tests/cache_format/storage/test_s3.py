"""A cache on an S3 server: written, stopped and gone on with, read through a bound, damaged."""

import hashlib
import subprocess
import sys
from pathlib import Path

import fsspec
import pytest

import cache_format
from cache_format.errors import CorruptShardError, MissingShardError, StorageError
from cache_format.storage.remote import RemoteStorage
from cache_format.tools.verify import verify
from cache_format.writer import CacheWriter
from tests.support.sample_cache import (
    assert_same_row,
    build_teacher,
    contents,
    fill,
    sample_row,
    sample_shared,
    sample_spec,
    write_sample_cache,
)

pytestmark = pytest.mark.allow_hosts(["127.0.0.1"])

SPEC = sample_spec()
_KILLED = """
import os, sys
from cache_format.storage.remote import RemoteStorage
from tests.support.sample_cache import write_sample_cache

left = int(sys.argv[2])

def before_upload(real):
    def upload(*arguments, **options):
        global left
        left -= 1
        if left < 0:
            os.kill(os.getpid(), 9)
        return real(*arguments, **options)
    return upload

for name in ("publish", "publish_exclusive", "_put"):
    setattr(RemoteStorage, name, before_upload(getattr(RemoteStorage, name)))
write_sample_cache(sys.argv[1])
"""


def everything(url: str) -> dict[str, str]:
    storage = RemoteStorage(url)
    names = storage.files_below("")
    return {name: hashlib.sha256(storage.read(name)).hexdigest() for name in names}


def write_long_cache(url: str) -> None:
    """Eight training shards of two rows each."""
    writer = CacheWriter.create_or_open(url, SPEC, sample_shared())
    writer.write_attachments(build_teacher)
    for unit in (1, 2, 4, 5, 7, 8, 10, 11):
        rows = [sample_row(10 * unit + index, SPEC) for index in range(2)]
        writer.write_unit(unit, rows, num_documents=1)
    writer.publish_manifest(192, complete=True)


def flip(url: str, name: str) -> None:
    storage = RemoteStorage(url)
    data = bytearray(storage.read(name))
    data[len(data) // 2] ^= 16
    storage.publish(name, bytes(data))


@pytest.fixture
def written(bucket: str) -> str:
    """URL of a cache with eight training shards."""
    write_long_cache(f"{bucket}/deep/cache")
    return f"{bucket}/deep/cache"


def test_a_killed_and_resumed_cache_on_s3_equals_the_one_on_disk(
    bucket: str, tmp_path: Path
) -> None:
    """The program is killed for real, in the middle of the units."""
    url = f"{bucket}/cache"
    killed = subprocess.run([sys.executable, "-c", _KILLED, url, "9"])
    assert killed.returncode == -9
    cache = cache_format.open(url, allow_incomplete=True)
    assert not cache.manifest.complete
    finished = {entry.unit: entry for entry in cache.manifest.shards}
    assert 0 < len(finished) < 4
    write_sample_cache(url)
    write_sample_cache(tmp_path / "cache")
    assert everything(url) == contents(tmp_path / "cache")
    cache = cache_format.open(url)
    assert {e.unit: e for e in cache.manifest.shards if e.unit in finished} == finished
    assert verify(cache, num_threads=4) == []


def test_two_processes_write_one_cache_with_the_same_bytes(bucket: str, tmp_path: Path) -> None:
    url = f"{bucket}/cache"
    script = "import sys; from tests.support import sample_cache as s; "
    script += "s.write_sample_cache(sys.argv[1])"
    writers = [subprocess.Popen([sys.executable, "-c", script, url]) for _ in range(2)]
    assert [writer.wait() for writer in writers] == [0, 0]
    write_sample_cache(tmp_path / "cache")
    assert everything(url) == contents(tmp_path / "cache")


def test_of_two_that_create_an_object_the_first_wins(bucket: str) -> None:
    first, second = RemoteStorage(bucket), RemoteStorage(bucket)
    assert first.publish_exclusive("receipts/a", b"first")
    assert not second.publish_exclusive("receipts/a", b"second")
    assert first.read("receipts/a") == b"first"


def test_changes_by_another_process_are_visible_at_once(bucket: str) -> None:
    """Drivers remember listings; two of them, which know nothing of each other, stand for two."""
    first, second = RemoteStorage(bucket), RemoteStorage(bucket)
    second._fs = fsspec.filesystem("s3", skip_instance_cache=True)
    for number in range(3):
        first.publish(f"shards/{number}", b"1")
        assert second.list_names("shards") == [str(n) for n in range(number + 1)]
        assert second.files_below("") == [f"shards/{n}" for n in range(number + 1)]
    for data in (b"1", b"22"):
        first.publish("shards/0", data)
        assert second.size("shards/0") == len(data)
    first.remove("shards/0")
    assert second.size("shards/0") is None
    assert second.list_names("shards") == ["1", "2"]


def test_every_row_is_read_with_room_for_two_local_shards(written: str, tmp_path: Path) -> None:
    sizes = [entry.num_bytes for entry in cache_format.open(written).shards("train")]
    bound = 2 * max(sizes)
    assert sum(sizes) > 3 * bound
    cache = cache_format.open(written, local_directory=tmp_path, local_bytes=bound)
    directory = tmp_path / cache.cache_id / "shards"
    seen: set[str] = set()
    for number, (unit, row) in enumerate(cache.iter_rows("train")):
        given = sample_row(10 * unit + number % 2, SPEC)
        assert row.token_ids.tolist() == given.token_ids.tolist()
        seen |= {path.name for path in directory.iterdir()}
        assert sum(path.stat().st_size for path in directory.iterdir()) <= bound
    assert number == 15
    assert len(seen) == 8
    assert len(list(directory.iterdir())) == 2


def test_local_shards_evicted_while_they_are_read_stay_readable(
    written: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cache_format.shard_batches._BATCHES_KEPT", 0)
    cache = cache_format.open(written, local_directory=tmp_path)
    directory = tmp_path / cache.cache_id / "shards"
    rows = cache.iter_rows("train")
    first = next(rows)[1]
    for path in directory.iterdir():
        path.unlink()
    next(rows)
    assert_same_row(cache.read_row("train", 0)[1], first)
    gone = cache.shards("train")[1]
    RemoteStorage(written).remove(gone.file)
    with pytest.raises(MissingShardError, match=rf"^{written}/{gone.file}: missing\..*only unit 2"):
        next(rows)
    assert_same_row(cache.read_row("train", 0)[1], first)
    write_long_cache(written)  # makes that unit again
    assert_same_row(cache.read_row("train", 0)[1], first)
    assert cache.read_row("train", 2)[0] == 2


def test_a_flipped_byte_is_named(written: str, tmp_path: Path) -> None:
    cache = cache_format.open(written, local_directory=tmp_path)
    entry = cache.shards("train")[2]
    flip(written, entry.file)
    with pytest.raises(CorruptShardError, match=rf"^{written}/{entry.file}: damaged: .*unit 4"):
        cache.read_row("train", 4)
    flip(written, "teacher/config.json")
    with pytest.raises(ValueError, match=rf"^{written}/teacher/config.json: damaged: .*run"):
        cache.attachment("config.json")
    assert [problem.path for problem in verify(cache)] == [
        f"{written}/{entry.file}",
        f"{written}/teacher/config.json",
    ]
    flip(written, "manifest.json")
    with pytest.raises(ValueError, match=rf"^{written}/manifest.json: damaged"):
        cache_format.open(written)


def test_a_missing_bucket_is_named(bucket: str) -> None:
    with pytest.raises(StorageError, match=r"spec\.json: could not be written.*Create the bucket"):
        CacheWriter.create_or_open(f"{bucket}-other/cache", SPEC, sample_shared())
    with pytest.raises(ValueError, match=r"not a cache: expected manifest\.json"):
        cache_format.open(f"{bucket}-other/cache")


def test_an_unreachable_server_is_named(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import fsspec.config

    monkeypatch.setattr("cache_format.storage.remote._WAITS_SECONDS", (0.0,))
    monkeypatch.setitem(fsspec.config.conf["s3"], "endpoint_url", "http://127.0.0.1:9")
    monkeypatch.setitem(fsspec.config.conf["s3"], "config_kwargs", {"retries": {"max_attempts": 0}})
    with pytest.raises(StorageError, match=r"could not be read: .*127\.0\.0\.1:9.*endpoint"):
        cache_format.open(f"{bucket}/cache")


def test_a_shard_is_uploaded_before_its_receipt(
    bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    names: list[str] = []
    for method in ("publish", "publish_exclusive"):
        real = getattr(RemoteStorage, method)

        def recorded(storage: RemoteStorage, name: str, data: bytes, real: object = real) -> object:
            names.append(name.partition("-")[0])
            return real(storage, name, data)  # type: ignore[operator]

        monkeypatch.setattr(RemoteStorage, method, recorded)
    writer = CacheWriter.create_or_open(f"{bucket}/cache", SPEC, sample_shared())
    fill(writer, [0, 1])
    writer.publish_manifest(1, complete=True)
    assert names == [
        *("spec.json", "ranks.bin", "shards/00000", "receipts/00000.json"),
        *("shards/00001", "receipts/00001.json", "manifest.json"),
    ]
