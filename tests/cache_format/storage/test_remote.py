"""What the network and the drivers do: failures that pass, failures that stay, lost answers."""

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import cache_format
from cache_format.errors import StorageError
from cache_format.storage import remote
from cache_format.storage.open import storage_at
from cache_format.storage.remote import RemoteStorage
from cache_format.tools.verify import verify
from cache_format.writer import CacheWriter
from tests.support.sample_cache import (
    contents,
    fill,
    sample_row,
    sample_shared,
    sample_spec,
    write_sample_cache,
)


class Flaky:
    """The driver's method ``name``; fails ``num_failures`` times, before or after its work."""

    def __init__(
        self, fs: Any, name: str, error: Exception, num_failures: int, *, late: bool = False
    ) -> None:
        self.real: Callable[..., Any] = getattr(fs, name)
        self.error, self.left, self.late, self.num_calls = error, num_failures, late, 0

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        self.num_calls += 1
        if self.left == 0:
            return self.real(*arguments, **options)
        self.left -= 1
        if self.late:
            self.real(*arguments, **options)
        raise self.error


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Seconds that were waited, without waiting."""
    waited: list[float] = []
    monkeypatch.setattr("time.sleep", waited.append)
    return waited


@pytest.fixture
def storage(tmp_path: Path) -> RemoteStorage:
    made = RemoteStorage(f"memory://{tmp_path.name}")
    made.publish("a", b"content")
    return made


ERRORS = [ConnectionResetError("reset"), TimeoutError(), RuntimeError("a driver's own")]
CALLS: dict[str, tuple[str, Callable[[RemoteStorage], object]]] = {
    "read": ("cat_file", lambda storage: storage.read("a")),
    "chunks": ("cat_file", lambda storage: list(storage.chunks("a", 7))),
    "size": ("info", lambda storage: storage.size("a")),
    "list": ("ls", lambda storage: storage.list_names("")),
    "find": ("find", lambda storage: storage.files_below("")),
    "publish": ("pipe_file", lambda storage: storage.publish("b", b"1")),
    "exclusive": ("pipe_file", lambda storage: storage.publish_exclusive("c", b"1")),
    "remove": ("rm_file", lambda storage: storage.remove("a")),
}


@pytest.mark.parametrize("error", ERRORS, ids=str)
@pytest.mark.parametrize("call", CALLS)
def test_transient_failures_are_retried(
    call: str,
    error: Exception,
    storage: RemoteStorage,
    waits: list[float],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    name, act = CALLS[call]
    expected = act(storage)
    for file in ("b", "c"):
        storage.remove(file)
    storage.publish("a", b"content")
    flaky = Flaky(storage._fs, name, error, 3)
    monkeypatch.setattr(storage._fs, name, flaky)
    assert act(storage) == expected
    assert flaky.num_calls == 4
    assert waits == sorted(waits)
    assert len(set(waits)) == 3


@pytest.mark.parametrize("call", CALLS)
def test_a_persistent_failure_is_raised_after_all_retries(
    call: str, storage: RemoteStorage, waits: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    name, act = CALLS[call]
    monkeypatch.setattr(storage._fs, name, Flaky(storage._fs, name, OSError("no route"), 99))
    with pytest.raises(StorageError, match=rf"^{storage.root}.*could not be .*: no route.*again"):
        act(storage)
    assert len(waits) == 3


def test_permission_errors_are_not_retried(
    storage: RemoteStorage, waits: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    error = PermissionError("Access Denied")
    monkeypatch.setattr(storage._fs, "cat_file", Flaky(storage._fs, "cat_file", error, 1))
    with pytest.raises(StorageError, match=r"could not be read: Access Denied.*credentials"):
        storage.read("a")
    assert waits == []


def test_a_truncated_response_is_requested_again(
    storage: RemoteStorage, waits: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    real, answers = storage._fs.cat_file, [b"con"]
    monkeypatch.setattr(
        storage._fs, "cat_file", lambda *a, **o: answers.pop() if answers else real(*a, **o)
    )
    assert b"".join(storage.chunks("a", 7)) == b"content"
    assert len(waits) == 1


def test_a_large_file_is_read_in_several_requests(
    storage: RemoteStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote, "_CHUNK_BYTES", 3)
    assert list(storage.chunks("a", 7)) == [b"con", b"ten", b"t"]


@pytest.mark.parametrize("error", [OSError("412"), FileExistsError()], ids=str)
def test_every_driver_error_for_an_existing_object_is_understood(
    error: Exception,
    storage: RemoteStorage,
    waits: list[float],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(storage._fs, "pipe_file", Flaky(storage._fs, "pipe_file", error, 1))
    assert not storage.publish_exclusive("a", b"other")
    assert storage.read("a") == b"content"
    assert waits == []


def test_a_write_whose_response_was_lost_still_counts(
    tmp_path: Path, waits: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every upload arrives, and half of the answers do not: nothing is doubled or lost."""
    url = f"memory://{tmp_path.name}/cache"
    fs = RemoteStorage(url)._fs
    real, count = fs.pipe_file, 0

    def pipe_file(*arguments: Any, **options: Any) -> None:
        nonlocal count
        count += 1
        real(*arguments, **options)
        if count % 2:
            raise ConnectionResetError("the answer got lost")

    monkeypatch.setattr(fs, "pipe_file", pipe_file)
    write_sample_cache(url)
    cache = cache_format.open(url)
    assert verify(cache) == []
    assert [entry.unit for entry in cache.manifest.shards] == [0, 1, 2, 3]


def test_two_writers_without_exclusive_writes_still_leave_a_whole_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The worst moment: both take the receipt for theirs, and each removes the other's shard."""
    url = f"memory://{tmp_path.name}/cache"
    spec, shared = sample_spec(), sample_shared()
    writer, rival = (CacheWriter.create_or_open(url, spec, shared) for _ in range(2))
    fill(writer, [0, 1])
    fs, pending = RemoteStorage(url)._fs, [True]
    real = fs.pipe_file

    def pipe_file(key: str, data: bytes, mode: str = "overwrite") -> None:
        if key.endswith("receipts/00005.json") and pending:
            pending.clear()
            rival.write_unit(5, [sample_row(1, spec)], num_documents=1)
        real(key, data)

    monkeypatch.setattr(fs, "pipe_file", pipe_file)
    writer.write_unit(5, [sample_row(2, spec)], num_documents=1)
    monkeypatch.undo()
    assert sorted(writer.finished_units()) == [0, 1]
    writer.publish_manifest(1, complete=True)
    assert list(cache_format.open(url, local_directory=tmp_path).iter_rows("train"))
    entry = writer.write_unit(5, [sample_row(2, spec)], num_documents=1)
    assert writer.finished_units()[5] == entry
    writer.publish_manifest(1, complete=True)
    assert verify(cache_format.open(url)) == []


class Stopped(BaseException):
    """As a kill would end it: nothing runs afterwards."""


class Countdown:
    """Lets so many changes through, then stops the program before the next one."""

    def __init__(self, num_changes: int) -> None:
        self.left = num_changes

    def __call__(self, real: Callable[..., Any]) -> Callable[..., Any]:
        def change(*arguments: Any, **options: Any) -> Any:
            self.left -= 1
            if self.left < 0:
                raise Stopped
            return real(*arguments, **options)

        return change


def test_a_run_stopped_before_any_change_resumes_to_the_same_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What there is then is whole; the next run goes on, and ends with the same bytes."""
    write_sample_cache(tmp_path / "whole")
    expected = contents(tmp_path / "whole")
    fs = RemoteStorage(f"memory://{tmp_path.name}")._fs
    num_stopped, was_stopped = 0, True
    while was_stopped:
        url = f"memory://{tmp_path.name}/{num_stopped}"
        with monkeypatch.context() as patch:
            counted = Countdown(num_stopped)
            for name in ("pipe_file", "put_file", "rm_file"):
                patch.setattr(fs, name, counted(getattr(fs, name)))
            try:
                write_sample_cache(url)
            except Stopped:
                num_stopped += 1
            else:
                was_stopped = False
        storage = RemoteStorage(url)
        if storage.has("ranks.bin"):
            problems = verify(cache_format.open(url, allow_incomplete=True))
            assert not any(problem.is_damage for problem in problems)
        write_sample_cache(url)
        names = storage.files_below("")
        found = {name: hashlib.sha256(storage.read(name)).hexdigest() for name in names}
        assert found == expected
    assert num_stopped > 12


def test_a_missing_bucket_is_named_without_retries(
    storage: RemoteStorage, waits: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    error = FileNotFoundError("The specified bucket does not exist")
    monkeypatch.setattr(storage._fs, "pipe_file", Flaky(storage._fs, "pipe_file", error, 99))
    with pytest.raises(StorageError, match=r"bucket does not exist\. Create the bucket"):
        CacheWriter.create_or_open(f"{storage.root}/new", sample_spec(), sample_shared())
    assert waits == []


def test_directory_marker_objects_are_ignored(
    storage: RemoteStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Some programs make one; drivers list it among what is in the directory."""
    key = f"/{storage.root.removeprefix('memory://')}/shards"
    for listing in ("ls", "find"):
        monkeypatch.setattr(storage._fs, listing, lambda *a, **o: [key, f"{key}/", f"{key}/x"])
    assert storage.list_names("shards") == ["x"]
    assert storage.files_below("shards") == ["shards/x"]


def test_a_missing_driver_names_the_package_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(url: str) -> None:
        raise ImportError("Install s3fs to access S3")

    monkeypatch.setattr("fsspec.core.url_to_fs", absent)
    with pytest.raises(StorageError, match=r"^s3://bucket/cache: no driver.*pip install s3fs"):
        storage_at("s3://bucket/cache")


def test_an_unknown_url_protocol_is_refused() -> None:
    with pytest.raises(StorageError, match=r"^nonsense://cache: Protocol not known.*directory"):
        cache_format.open("nonsense://cache")
