"""Copies of a remote cache's shards: bounded, whole, fetched once, and mended."""

import hashlib
import os
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import pytest

import cache_format
from cache_format.codec.row_codec import Row
from cache_format.errors import CorruptFileError, CorruptShardError, MissingShardError
from cache_format.storage import shard_cache
from cache_format.storage.remote import RemoteStorage
from cache_format.storage.shard_cache import LocalCopies
from cache_format.writer import CacheWriter
from tests.support.sample_cache import (
    assert_same_row,
    sample_row,
    sample_shared,
    sample_spec,
)

SPEC = sample_spec()
NAMES = [f"shards/{index}" for index in range(6)]


class Counted(RemoteStorage):
    """Counts fetches; what is in ``damaged`` arrives wrong so many times."""

    def __init__(self, url: str) -> None:
        super().__init__(url)
        self.fetched: Counter[str] = Counter()
        self.damaged: Counter[str] = Counter()
        self.seconds = 0.0

    def chunks(self, name: str, num_bytes: int) -> Iterator[bytes]:
        self.fetched[name] += 1
        for chunk in super().chunks(name, num_bytes):
            time.sleep(self.seconds)
            if self.damaged[name] > 0:
                self.damaged[name] -= 1
                chunk = bytes([chunk[0] ^ 1]) + chunk[1:]
            yield chunk


@pytest.fixture
def remote(tmp_path: Path) -> Counted:
    """Six files of 1000 bytes."""
    storage = Counted(f"memory://{tmp_path.name}")
    for name in NAMES:
        storage.publish(name, name.encode().ljust(1000))
    return storage


def expected(name: str) -> tuple[int, str]:
    return 1000, hashlib.sha256(name.encode().ljust(1000)).hexdigest()


def read(local: LocalCopies, name: str) -> bytes:
    descriptor = local.open(name, expected(name), "Do this.")
    try:
        return os.pread(descriptor, 2000, 0)
    finally:
        os.close(descriptor)


def held(directory: Path) -> list[str]:
    return sorted(f"shards/{path.name}" for path in (directory / "shards").iterdir())


def used(directory: Path) -> int:
    """Bytes that are there or on their way, while others work on them."""
    try:
        names = os.listdir(directory)
    except FileNotFoundError:
        return 0
    total = 0
    for name in names:
        with suppress(FileNotFoundError):
            total += (directory / name).stat().st_size
    return total


def test_the_least_recently_read_shard_is_evicted(remote: Counted, tmp_path: Path) -> None:
    local = LocalCopies(remote, tmp_path, 3500)
    for name in (NAMES[0], NAMES[1], NAMES[2]):
        assert read(local, name) == name.encode().ljust(1000)
        time.sleep(0.02)  # file systems tell times apart by some milliseconds
    read(local, NAMES[0])
    time.sleep(0.02)
    read(local, NAMES[3])
    assert held(tmp_path) == [NAMES[0], NAMES[2], NAMES[3]]
    read(local, NAMES[1])
    assert held(tmp_path) == [NAMES[0], NAMES[1], NAMES[3]]
    assert remote.fetched == Counter({name: 1 for name in NAMES[:4]} | {NAMES[1]: 2})


def test_an_evicted_shard_that_is_open_stays_readable(remote: Counted, tmp_path: Path) -> None:
    local = LocalCopies(remote, tmp_path, 1000)
    descriptor = local.open(NAMES[0], expected(NAMES[0]), "")
    read(local, NAMES[1])
    assert held(tmp_path) == [NAMES[1]]
    assert os.pread(descriptor, 2000, 0) == NAMES[0].encode().ljust(1000)
    os.close(descriptor)


def test_shards_of_an_earlier_process_are_reused_and_count_in_the_bound(
    remote: Counted, tmp_path: Path
) -> None:
    read(LocalCopies(remote, tmp_path, 2000), NAMES[0])
    local = LocalCopies(remote, tmp_path, 2000)
    for name in NAMES[:3]:
        read(local, name)
        time.sleep(0.02)
    assert held(tmp_path) == NAMES[1:3]
    assert remote.fetched[NAMES[0]] == 1


def test_leftovers_of_killed_processes_are_removed_to_make_room(
    remote: Counted, tmp_path: Path
) -> None:
    (tmp_path / "shards").mkdir()
    (tmp_path / "shards/.tmp-half").write_bytes(bytes(1000))
    read(LocalCopies(remote, tmp_path, 1000), NAMES[0])
    assert held(tmp_path) == [NAMES[0]]


def test_a_shard_larger_than_the_bound_is_refused(remote: Counted, tmp_path: Path) -> None:
    read(LocalCopies(remote, tmp_path, 1000), NAMES[0])
    with pytest.raises(ValueError, match=r"local_bytes: one shard takes 1,000 bytes.*the 999"):
        read(LocalCopies(remote, tmp_path / "other", 999), NAMES[0])


def test_a_shard_damaged_in_transit_is_fetched_once_more(remote: Counted, tmp_path: Path) -> None:
    local = LocalCopies(remote, tmp_path, 5000)
    remote.damaged[NAMES[0]] = 1
    assert read(local, NAMES[0]) == NAMES[0].encode().ljust(1000)
    remote.damaged[NAMES[1]] = 2
    with pytest.raises(CorruptFileError, match=f"{remote.root}/{NAMES[1]}: damaged.*Do this."):
        read(local, NAMES[1])
    assert held(tmp_path) == [NAMES[0]]
    assert remote.fetched == {NAMES[0]: 2, NAMES[1]: 2}


def test_a_failed_fetch_leaks_no_descriptor(remote: Counted, tmp_path: Path) -> None:
    local = LocalCopies(remote, tmp_path, 5000)
    read(local, NAMES[0])
    before = len(os.listdir("/proc/self/fd"))
    remote.damaged[NAMES[1]] = 2
    with pytest.raises(CorruptFileError):
        read(local, NAMES[1])
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_dropped_shard_is_fetched_again(remote: Counted, tmp_path: Path) -> None:
    local = LocalCopies(remote, tmp_path, 5000)
    read(local, NAMES[0])
    assert local.drop(NAMES[0])
    assert local.drop(NAMES[0])  # another thread was faster
    read(local, NAMES[0])
    assert remote.fetched[NAMES[0]] == 2


def test_attachments_are_never_evicted(remote: Counted, tmp_path: Path) -> None:
    local = LocalCopies(remote, tmp_path, 1000)
    remote.publish("teacher/config.json", b"{}")
    sha256 = hashlib.sha256(b"{}").hexdigest()
    path = local.path("teacher/config.json", (2, sha256), "")
    for name in NAMES:
        read(local, name)
    assert local.path("teacher/config.json", (2, sha256), "") == path
    assert remote.fetched["teacher/config.json"] == 1
    path.write_bytes(b"[]")
    assert local.path("teacher/config.json", (2, sha256), "").read_bytes() == b"{}"


def test_threads_fetch_a_shard_once_and_keep_to_the_bound(remote: Counted, tmp_path: Path) -> None:
    remote.seconds = 0.02
    local = LocalCopies(remote, tmp_path, 2000)
    failures: list[BaseException] = []
    most = 0

    def work(names: list[str]) -> None:
        try:
            for name in names:
                assert read(local, name) == name.encode().ljust(1000)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=([NAMES[0]],)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert remote.fetched == {NAMES[0]: 1}
    threads = [threading.Thread(target=work, args=(NAMES[k:] + NAMES[:k],)) for k in range(6)]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        most = max(most, used(tmp_path / "shards"))
    assert failures == []
    assert 1000 <= most <= 2000


def test_a_file_published_during_eviction_counts_in_the_bound(
    remote: Counted, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One thread has listed the directory when the other is about to name what it fetched."""
    local, real = LocalCopies(remote, tmp_path, 1500), os.listdir
    has_begun, may_end = threading.Event(), threading.Event()

    class Slow(Counted):
        def chunks(self, name: str, num_bytes: int) -> Iterator[bytes]:
            has_begun.set()
            may_end.wait()
            yield from super().chunks(name, num_bytes)

    def listdir(path: Path) -> list[str]:
        names = real(path)
        if any(name.startswith(".tmp-") for name in names):
            may_end.set()
            time.sleep(0.1)
        return names

    slow = threading.Thread(
        target=read, args=(LocalCopies(Slow(remote.root), tmp_path, 1500), NAMES[0])
    )
    slow.start()
    has_begun.wait()
    monkeypatch.setattr("cache_format.storage.shard_cache.os.listdir", listdir)
    read(local, NAMES[1])
    slow.join()
    assert used(tmp_path / "shards") == 1000


def test_processes_share_one_shard_directory_within_its_bound(tmp_path: Path) -> None:
    """Four of them read a cache on this disk as if it were far away, into one small directory."""
    script = (
        "import os, sys, hashlib, random\n"
        "from cache_format.storage.shard_cache import LocalCopies\n"
        "from cache_format.storage.local import LocalStorage\n"
        "from pathlib import Path\n"
        "root, seed = Path(sys.argv[1]), int(sys.argv[2])\n"
        "local = LocalCopies(LocalStorage(root / 'far'), root / 'near', 2500)\n"
        "for _ in range(60):\n"
        "    name = f'shards/{random.Random(seed).randrange(6)}'; seed += 1\n"
        "    data = name.encode().ljust(1000)\n"
        "    fd = local.open(name, (1000, hashlib.sha256(data).hexdigest()), '')\n"
        "    assert os.pread(fd, 2000, 0) == data\n"
        "    os.close(fd)\n"
    )
    (tmp_path / "far/shards").mkdir(parents=True)
    for name in NAMES:
        (tmp_path / "far" / name).write_bytes(name.encode().ljust(1000))
    processes = [
        subprocess.Popen([sys.executable, "-c", script, str(tmp_path), str(1000 * n)])
        for n in range(4)
    ]
    most = 0
    while any(process.poll() is None for process in processes):
        most = max(most, used(tmp_path / "near/shards"))
    assert [process.wait() for process in processes] == [0, 0, 0, 0]
    assert 2000 <= most <= 2500
    assert not any(name.startswith("shards/.tmp-") for name in held(tmp_path / "near"))


class TestReading:
    """The same through a ``Cache``."""

    @pytest.fixture
    def url(self, tmp_path: Path) -> str:
        """Five training shards of two rows."""
        url = f"memory://{tmp_path.name}/cache"
        writer = CacheWriter.create_or_open(url, SPEC, sample_shared())
        for unit in (1, 2, 4, 5, 7):
            writer.write_unit(unit, self.rows(unit), num_documents=1)
        writer.publish_manifest(120, complete=True)
        return url

    def rows(self, unit: int) -> list[Row]:
        return [sample_row(10 * unit + index, SPEC) for index in range(2)]

    @pytest.fixture(autouse=True)
    def without_batch_memory(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Every row is read from its file."""
        monkeypatch.setattr("cache_format.shard_batches._BATCHES_KEPT", 0)

    def test_every_row_is_read_through_a_bound_smaller_than_the_cache(
        self, url: str, tmp_path: Path
    ) -> None:
        sizes = [entry.num_bytes for entry in cache_format.open(url).shards("train")]
        bound = 2 * max(sizes)
        cache = cache_format.open(url, local_directory=tmp_path, local_bytes=bound)
        assert cache.max_local_bytes == bound
        whole = cache_format.open(url, local_directory=tmp_path / "whole")
        seen = set()
        for index in [*range(10), *range(9, -1, -1)]:
            assert_same_row(cache.read_row("train", index)[1], whole.read_row("train", index)[1])
            directory = tmp_path / cache.cache_id / "shards"
            seen |= {path.name for path in directory.iterdir()}
            assert sum(path.stat().st_size for path in directory.iterdir()) <= bound
        assert len(seen) == 5
        assert len(list((tmp_path / "whole" / cache.cache_id / "shards").iterdir())) == 5

    def test_a_locally_deleted_shard_is_fetched_again(self, url: str, tmp_path: Path) -> None:
        cache = cache_format.open(url, local_directory=tmp_path)
        first = cache.read_row("train", 0)[1]
        for path in (tmp_path / cache.cache_id / "shards").iterdir():
            path.unlink()
        assert_same_row(cache.read_row("train", 0)[1], first)

    @pytest.mark.parametrize("damage", ["flip", "cut"])
    def test_a_locally_damaged_shard_is_fetched_again(
        self, url: str, tmp_path: Path, damage: str
    ) -> None:
        cache = cache_format.open(url, local_directory=tmp_path)
        first = cache.read_row("train", 0)[1]
        (path,) = (tmp_path / cache.cache_id / "shards").iterdir()
        data = bytearray(path.read_bytes())
        data[len(data) // 3] ^= 1
        path.write_bytes(data[: len(data) // 2] if damage == "cut" else data)
        assert_same_row(cache.read_row("train", 0)[1], first)

    def test_threads_that_meet_one_damaged_shard_all_get_its_rows(
        self, url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        cache = cache_format.open(url, local_directory=tmp_path)
        first = cache.read_row("train", 0)[1]
        (path,) = (tmp_path / cache.cache_id / "shards").iterdir()
        data = bytearray(path.read_bytes())
        data[len(data) // 3] ^= 1
        path.write_bytes(data)
        drop, together = LocalCopies.drop, threading.Barrier(2, timeout=120)

        def dropping(local: LocalCopies, name: str) -> bool:
            together.wait()  # both have read it
            result = drop(local, name)
            together.wait()  # neither has fetched it again
            return result

        monkeypatch.setattr(LocalCopies, "drop", dropping)
        with ThreadPoolExecutor(2) as pool:
            for _, row in pool.map(lambda index: cache.read_row("train", index), [0, 0]):
                assert_same_row(row, first)

    def test_a_remotely_deleted_shard_is_read_locally_or_named(
        self, url: str, tmp_path: Path
    ) -> None:
        cache = cache_format.open(url, local_directory=tmp_path)
        rows = [cache.read_row("train", index)[1] for index in range(2)]
        storage = RemoteStorage(url)
        for entry in cache.shards("train"):
            storage.remove(entry.file)
        for index, row in enumerate(rows):  # held here
            assert_same_row(cache.read_row("train", index)[1], row)
        gone = cache.shards("train")[1]
        with pytest.raises(
            MissingShardError, match=rf"^{url}/{gone.file}: missing\. .*only unit 2 is made again"
        ):
            cache.read_row("train", 2)

    def test_a_remotely_damaged_shard_is_named(self, url: str, tmp_path: Path) -> None:
        cache = cache_format.open(url, local_directory=tmp_path)
        storage, entry = RemoteStorage(url), cache.shards("train")[3]
        data = bytearray(storage.read(entry.file))
        data[len(data) // 2] ^= 4
        storage.publish(entry.file, bytes(data))
        for _ in range(2):
            with pytest.raises(
                CorruptShardError,
                match=rf"^{url}/{entry.file}: damaged: expected SHA-256.*only unit 5 is made again",
            ):
                cache.read_row("train", 6)
        assert not any((tmp_path / cache.cache_id / "shards").iterdir())

    def test_the_default_directory_follows_xdg_cache_home(
        self, url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
        cache = cache_format.open(url)
        cache.read_row("train", 0)
        assert cache.max_local_bytes == 20 << 30
        assert list((tmp_path / "xdg/xlstm-distill" / cache.cache_id / "shards").iterdir())
        monkeypatch.delenv("XDG_CACHE_HOME")
        monkeypatch.setenv("HOME", str(tmp_path))
        assert shard_cache.default_directory() == tmp_path / ".cache/xlstm-distill"
