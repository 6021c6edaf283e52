"""A directory and a URL keep the same promises, operation by operation."""

import hashlib
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import cache_format
from cache_format.errors import (
    CorruptFileError,
    ForeignDirectoryError,
    MissingFileError,
)
from cache_format.storage.base import (
    LocalSpace,
    Storage,
    check_file,
    checked_chunks,
    is_url,
    read_file,
)
from cache_format.storage.local import LocalStorage
from cache_format.storage.open import storage_at
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
    unit_rows,
    write_sample_cache,
)

SPEC = sample_spec()


@pytest.fixture(params=["directory", "url"])
def empty(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Storage]:
    """A place where nothing is yet."""
    if request.param == "directory":
        made: Storage = LocalStorage(tmp_path / "cache")
    else:
        made = RemoteStorage(f"memory://{tmp_path.name}/cache/")
    yield made
    made.remove_directory("")


@pytest.fixture
def storage(empty: Storage) -> Storage:
    """A place made ready."""
    for directory in ("", "shards", "receipts"):
        empty.prepare(directory)
    return empty


def everything(storage: Storage) -> dict[str, bytes]:
    return {name: storage.read(name) for name in storage.files_below("")}


def test_locate_joins_the_root_and_the_name(storage: Storage) -> None:
    assert str(storage.locate("shards/a")) == f"{storage.root}/shards/a"
    assert storage.locate("") == storage.root
    assert not str(storage.root).endswith("/")


def test_reading_a_missing_file_raises_file_not_found(storage: Storage) -> None:
    for name in ("a", "shards/a", "nothing/a"):
        assert storage.size(name) is None
        assert not storage.has(name)
        with pytest.raises(FileNotFoundError):
            storage.read(name)
    with pytest.raises(FileNotFoundError):
        list(storage.chunks("a", 3))
    with pytest.raises(MissingFileError, match=r"/a: missing\. Do this\."):
        read_file(storage, "a", "Do this.")
    with pytest.raises(MissingFileError, match=r"/a: missing\. Do this\."):
        check_file(storage, "a", (3, "0" * 64), "Do this.")
    assert storage.list_names("nothing") == []
    assert storage.files_below("nothing") == []
    storage.remove("a")
    storage.remove_directory("nothing")


def test_a_path_below_a_file_is_a_missing_file(storage: Storage) -> None:
    storage.publish("a", b"1")
    assert storage.size("a/b") is None
    assert storage.list_names("a/b") == []


@pytest.mark.parametrize("data", [b"", b"x", bytes(range(256)) * 100])
def test_published_files_are_read_back(storage: Storage, data: bytes) -> None:
    storage.publish("a", b"before")
    storage.publish("a", data)
    assert storage.publish_exclusive("receipts/b", data)
    with storage.publish_file("shards/c") as sink:
        sink.write(data[:100])
        sink.write(memoryview(data)[100:])
    for name in ("a", "receipts/b", "shards/c"):
        assert storage.read(name) == data
        assert storage.size(name) == len(data)
        assert storage.has(name)
        assert b"".join(storage.chunks(name, len(data))) == data
        assert b"".join(storage.chunks(name, len(data) // 2)) == data[: len(data) // 2]
    assert everything(storage) == {"a": data, "receipts/b": data, "shards/c": data}


def test_of_two_exclusive_writes_the_first_wins(storage: Storage) -> None:
    assert storage.publish_exclusive("receipts/a", b"first")
    assert not storage.publish_exclusive("receipts/a", b"second")
    assert storage.read("receipts/a") == b"first"
    storage.remove("receipts/a")
    assert storage.publish_exclusive("receipts/a", b"third")


def test_listings_give_the_names_within_a_directory(storage: Storage) -> None:
    for name in ("b", "a", "shards/x-2", "shards/x-1", "shardsother/y", "teacher/t/u"):
        storage.prepare(name.rpartition("/")[0])
        storage.publish(name, b"")
    assert storage.list_names("shards") == ["x-1", "x-2"]
    assert set(storage.list_names("")) - {"receipts"} == {
        *("a", "b", "shards", "shardsother", "teacher")
    }
    assert storage.files_below("teacher") == ["teacher/t/u"]
    assert storage.files_below("shards") == ["shards/x-1", "shards/x-2"]
    storage.sync("shards")
    with storage.locked("shards"):
        storage.remove("shards/x-1")
    assert storage.list_names("shards") == ["x-2"]


def test_an_exception_publishes_nothing(storage: Storage) -> None:
    def fail_in_file() -> None:
        with storage.publish_file("shards/a") as sink:
            sink.write(b"half")
            raise KeyError

    def fail_in_directory() -> None:
        with storage.publish_directory("teacher") as directory:
            (directory / "a").write_bytes(b"half")
            raise KeyError

    for fail in (fail_in_file, fail_in_directory):
        with pytest.raises(KeyError):
            fail()
    assert everything(storage) == {}


def test_a_published_directory_can_be_listed_read_and_removed(storage: Storage) -> None:
    with storage.publish_directory("teacher") as directory:
        build_teacher(directory)
    assert storage.files_below("teacher") == ["teacher/config.json", "teacher/templates/chat.jinja"]
    assert storage.read("teacher/config.json") == b'{"model_type": "sample"}'
    storage.publish("teachers", b"")
    storage.remove_directory("teacher")
    assert storage.files_below("") == ["teachers"]


def test_size_and_checksum_are_checked_while_reading(storage: Storage) -> None:
    data = os.urandom(5000)
    digest = hashlib.sha256(data).hexdigest()
    storage.publish("a", data)
    seen: list[int] = []
    check_file(storage, "a", (5000, digest), "", seen.append)
    assert sum(seen) == 5000
    with pytest.raises(
        CorruptFileError, match=r"/a: damaged: expected 4999 bytes, found 5000\. Do"
    ):
        list(checked_chunks(storage, "a", (4999, digest), "Do"))
    storage.publish("a", data[:-1] + bytes([data[-1] ^ 1]))
    with pytest.raises(CorruptFileError, match=f"/a: damaged: expected SHA-256 {digest}, found "):
        list(checked_chunks(storage, "a", (5000, digest), "Do"))


def test_local_files_are_opened_at_their_checked_bytes(storage: Storage, tmp_path: Path) -> None:
    data = b"0123456789"
    expected = (10, hashlib.sha256(data).hexdigest())
    storage.publish("shards/a", data)
    storage.prepare("teacher/t")
    storage.publish("teacher/t/b", data)
    files = storage.local_files("id", LocalSpace(directory=tmp_path / "copies", num_bytes=10))
    descriptor = files.open("shards/a", expected, "")
    assert os.pread(descriptor, 3, 4) == b"456"
    os.close(descriptor)
    path = files.path("teacher/t/b", expected, "")
    assert path == files.directory / "teacher/t/b"
    assert path.read_bytes() == data
    for method in (files.open, files.path):
        with pytest.raises(MissingFileError, match=f"{storage.root}/shards/c: missing. Do this."):
            method("shards/c", expected, "Do this.")
    storage.publish("teacher/c", b"012345678X")
    with pytest.raises(CorruptFileError, match=f"{storage.root}/teacher/c: damaged.*Do this."):
        files.path("teacher/c", expected, "Do this.")


def test_a_cache_written_in_two_runs_has_the_same_bytes_on_every_storage(
    empty: Storage, tmp_path: Path
) -> None:
    """Written in two runs, extended, read, verified and repaired; the same bytes as elsewhere."""
    storage, place, ranks = empty, empty.root, sample_shared()
    writer = CacheWriter.create_or_open(place, SPEC, ranks)
    fill(writer, [0, 1])
    writer = CacheWriter.create_or_open(place, SPEC, ranks)
    assert sorted(writer.finished_units()) == [0, 1]
    writer.write_attachments(build_teacher)
    fill(writer, [0, 1, 2, 3])
    writer.publish_manifest(num_tokens_requested=120, complete=True)
    write_sample_cache(tmp_path / "other")
    expected = contents(tmp_path / "other")
    found = {n: hashlib.sha256(d).hexdigest() for n, d in everything(storage).items()}
    assert found == expected

    cache = cache_format.open(place, local_directory=tmp_path / "copies")
    assert cache.path == place
    for index, (_, row) in enumerate(cache_format.open(tmp_path / "other").iter_rows("train")):
        assert_same_row(cache.read_row("train", index)[1], row)
    directory = cache.teacher_directory()
    assert (directory / "templates/chat.jinja").read_text() == "{{ messages }}"
    assert verify(cache, num_threads=3) == []

    (entry,) = (entry for entry in cache.manifest.shards if entry.unit == 1)
    storage.publish(entry.file, storage.read(entry.file)[:-1])
    storage.publish("shards/orphan", b"")
    problems = verify(cache)
    assert [problem.path for problem in problems] == [
        storage.locate(entry.file),
        storage.locate("shards/orphan"),
    ]
    writer.discard_unit(1)
    assert sorted(writer.finished_units()) == [0, 2, 3]
    storage.remove("shards/orphan")
    fill(writer, [1])
    writer.publish_manifest(num_tokens_requested=120, complete=True)
    assert everything(storage) == {
        name: (tmp_path / "other" / name).read_bytes() for name in expected
    }


def test_the_slower_of_two_writers_keeps_the_unit_of_the_faster(empty: Storage) -> None:
    writer, rival = (
        CacheWriter.create_or_open(empty.root, SPEC, sample_shared()) for _ in range(2)
    )

    def rows() -> Iterator[object]:
        rival.write_unit(5, [sample_row(77, SPEC)], num_documents=9)
        yield sample_row(78, SPEC)

    entry = writer.write_unit(5, rows(), num_documents=8)  # type: ignore[arg-type]
    assert entry.num_documents == 9
    assert entry == rival.finished_units()[5]
    assert empty.list_names("shards") == [entry.file.removeprefix("shards/")]


def test_a_directory_of_other_files_is_refused_and_unchanged(storage: Storage) -> None:
    storage.publish("thesis.tex", b"years of work")
    with pytest.raises(ForeignDirectoryError, match=r"not a cache.*thesis\.tex.*another directory"):
        CacheWriter.create_or_open(storage.root, SPEC, sample_shared())
    with pytest.raises(ForeignDirectoryError, match=r"not a cache: expected manifest\.json"):
        cache_format.open(storage.root)
    assert everything(storage) == {"thesis.tex": b"years of work"}


def test_urls_and_local_paths_are_told_apart(tmp_path: Path) -> None:
    assert is_url("s3://bucket/cache")
    assert is_url("memory://cache")
    assert not is_url("C:/cache")
    assert not is_url(tmp_path)
    assert isinstance(storage_at(str(tmp_path)), LocalStorage)
    assert storage_at(f"file://{tmp_path}").root == tmp_path
    write_sample_cache(tmp_path / "cache")
    assert verify(cache_format.open(f"file://{tmp_path}/cache")) == []


def test_a_local_cache_does_not_import_fsspec(tmp_path: Path) -> None:
    write_sample_cache(tmp_path / "cache")
    script = (
        "import sys, cache_format\n"
        "from cache_format.tools.verify import verify\n"
        "cache = cache_format.open(sys.argv[1])\n"
        "cache.read_row('train', 0), verify(cache), cache.teacher_directory()\n"
        "assert not any(name.partition('.')[0] == 'fsspec' for name in sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", script, str(tmp_path / "cache")], check=True)


def test_rows_of_a_url_equal_those_that_were_given(tmp_path: Path) -> None:
    url = f"memory://{tmp_path.name}/rows"
    writer = CacheWriter.create_or_open(url, SPEC, sample_shared())
    fill(writer, [1])
    writer.publish_manifest(60, complete=True)
    cache = cache_format.open(url, local_directory=tmp_path)
    for index, row in enumerate(unit_rows(1, SPEC)):
        assert cache.read_row("train", index)[1].token_ids.tolist() == row.token_ids.tolist()


def test_a_bound_must_be_positive(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="local_bytes: must be 1 or more, found 0"):
        cache_format.open(tmp_path, local_bytes=0)
