"""The teacher's files: written once, whole; read after a look at their hashes."""

import shutil
from pathlib import Path

import pytest

import cache_format
from cache_format.errors import CorruptFileError, MissingFileError
from cache_format.tools.verify import verify
from cache_format.writer import CacheWriter
from tests.support.sample_cache import (
    build_teacher,
    contents,
    sample_shared,
    sample_spec,
)

SPEC = sample_spec()


def test_attachments_are_listed_and_read_by_name(root: Path) -> None:
    cache = cache_format.open(root)
    assert sorted(cache.attachments()) == ["config.json", "templates/chat.jinja"]
    assert cache.attachment("config.json").read_text() == '{"model_type": "sample"}'
    assert cache.teacher_directory() == root / "teacher"
    for name in ("nothing", "../manifest.json", "/etc/passwd"):
        with pytest.raises(MissingFileError, match="no such file of the teacher"):
            cache.attachment(name)


def test_a_damaged_attachment_is_named(root: Path) -> None:
    path = root / "teacher/config.json"
    path.write_text('{"model_type": "Sample"}')
    step = "Delete receipts/teacher.json and run"
    with pytest.raises(CorruptFileError, match=rf"config\.json: damaged.*{step}"):
        cache_format.open(root).attachment("config.json")
    with pytest.raises(CorruptFileError, match=r"config\.json: damaged"):
        cache_format.open(root).teacher_directory()
    assert [problem.path for problem in verify(cache_format.open(root))] == [path]
    path.unlink()
    with pytest.raises(MissingFileError, match=rf"config\.json: missing.*{step}"):
        cache_format.open(root).attachment("config.json")


def test_two_processes_may_write_the_attachments_at_once(tmp_path: Path) -> None:
    path = tmp_path / "cache"
    writer, rival = (CacheWriter.create_or_open(path, SPEC, sample_shared()) for _ in range(2))

    def build(directory: Path) -> None:
        rival.write_attachments(build_teacher)
        build_teacher(directory)

    writer.write_attachments(build)
    writer.publish_manifest(0, complete=True)
    assert verify(cache_format.open(path)) == []


@pytest.mark.parametrize("damage", ["receipt", "file", "directory", "both"])
def test_incomplete_attachments_are_written_again(root: Path, damage: str) -> None:
    before = contents(root)
    if damage in {"receipt", "both"}:
        (root / "receipts/teacher.json").unlink()
    if damage in {"file", "both"}:
        (root / "teacher/config.json").write_text("{}")
    if damage == "directory":
        shutil.rmtree(root / "teacher")
    writer = CacheWriter.create_or_open(root, SPEC, sample_shared())
    writer.write_attachments(build_teacher)
    writer.publish_manifest(num_tokens_requested=120, complete=True)
    assert contents(root) == before


@pytest.mark.parametrize("name", [".hidden", "with space", "tëst"])
def test_attachments_with_invalid_names_or_links_are_refused(tmp_path: Path, name: str) -> None:
    writer = CacheWriter.create_or_open(tmp_path / "cache", SPEC, sample_shared())
    before = contents(tmp_path)
    with pytest.raises(ValueError, match="cannot be a file of a cache"):
        writer.write_attachments(lambda directory: _touch(directory / name))
    with pytest.raises(ValueError, match="must not hold symbolic links"):
        writer.write_attachments(lambda directory: (directory / "a").symlink_to("/etc/passwd"))
    assert contents(tmp_path) == before


def _touch(path: Path) -> None:
    path.write_bytes(b"")


def test_a_failure_while_building_attachments_propagates(tmp_path: Path) -> None:
    writer = CacheWriter.create_or_open(tmp_path / "cache", SPEC, sample_shared())

    def build(directory: Path) -> None:
        raise FileExistsError("from the builder")

    with pytest.raises(FileExistsError, match="from the builder"):
        writer.write_attachments(build)
