"""``pipeline verify``."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cache_format.storage.base import Storage, checked_chunks
from tests.support.command_line import done, run


def test_an_intact_cache_passes_verification(tiny_cache: Path) -> None:
    result = run("verify", tiny_cache)
    assert result.exit_code == 0, result.output
    assert "every byte is as it was written" in result.stdout
    assert "100.0%" in result.stderr


def test_every_bad_file_is_named(tiny_cache: Path, tmp_path: Path) -> None:
    cache = shutil.copytree(tiny_cache, tmp_path / "cache")
    flipped, missing, *_ = sorted((cache / "shards").iterdir())
    data = bytearray(flipped.read_bytes())
    data[len(data) // 2] ^= 1
    flipped.write_bytes(data)
    missing.unlink()
    result = run("verify", cache)
    assert result.exit_code == 1
    assert str(flipped) in result.stdout
    assert str(missing) in result.stdout
    assert f"{cache}: 2 damaged." in result.stdout
    assert result.stdout.count("`pipeline cache-teacher`") == 1
    assert len(result.stdout.splitlines()) == 4


def test_an_unfinished_cache_verifies_and_is_called_incomplete(
    tiny_cache: Path, tmp_path: Path
) -> None:
    cache = shutil.copytree(tiny_cache, tmp_path / "cache")
    (cache / "manifest.json").unlink()
    result = run("verify", cache)
    assert result.exit_code == 0
    assert "The cache is not complete" in result.stdout


@pytest.mark.parametrize("threads", ["1", "3"])
def test_a_finished_verification_leaves_no_state_file(
    tiny_cache: Path, cache_home: Path, threads: str
) -> None:
    result = done("verify", tiny_cache, "--threads", threads)
    assert "every byte is as it was written" in result.stdout
    assert [path for path in cache_home.rglob("*") if path.is_file()] == []


def test_an_interrupted_verification_resumes(
    tiny_cache: Path, cache_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names: list[str] = []

    def interrupting(storage: Storage, name: str, *arguments: Any) -> Iterator[bytes]:
        if len(names) == 4:
            raise KeyboardInterrupt
        names.append(name)
        return checked_chunks(storage, name, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr("cache_format.tools.verify.checked_chunks", interrupting)
        result = run("verify", tiny_cache, "--threads", "1")
    assert result.exit_code == 130
    assert "Run the same command again" in result.stderr
    (record,) = (path for path in cache_home.rglob("*") if path.is_file())
    shutil.copy(record, record.with_suffix(".copy"))
    result = done("verify", tiny_cache)
    assert "resuming an interrupted verification" in result.stderr
    assert not record.exists()
    shutil.copy(record.with_suffix(".copy"), record)
    result = done("verify", tiny_cache, "--fresh")
    assert "resuming" not in result.stderr
    assert not record.exists()


def test_the_state_option_sets_where_progress_is_kept(tiny_cache: Path, tmp_path: Path) -> None:
    done("verify", tiny_cache, "--state", tmp_path / "mine")
    assert not (tmp_path / "mine").exists()
    (tmp_path / "file").touch()
    result = run("verify", tiny_cache, "--state", tmp_path / "file" / "mine")
    assert result.exit_code == 1


@pytest.mark.parametrize("options", [(), ("--fresh",)])
def test_a_state_file_of_something_else_is_kept(
    tiny_cache: Path, tmp_path: Path, options: tuple[str, ...]
) -> None:
    (tmp_path / "notes").write_text("mine")
    result = run("verify", tiny_cache, "--state", tmp_path / "notes", *options)
    assert result.exit_code == 1
    assert "notes: exists, but is not a record of a verification" in result.stderr
    assert (tmp_path / "notes").read_text() == "mine"


def test_verification_runs_where_its_state_cannot_be_written(
    tiny_cache: Path, cache_home: Path
) -> None:
    cache_home.touch()  # a file where the directory should be
    result = done("verify", tiny_cache)
    assert "the next verification starts over" in result.stderr
    assert "every byte is as it was written" in result.stdout
