"""The command line of a run: what a process with another working directory needs."""

from pathlib import Path

import pytest

from pipeline.ablation.planning.train_command import TrainCommand


def test_paths_do_not_depend_on_the_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("cache", "teacher"):
        (tmp_path / name).mkdir()
    command = TrainCommand(
        cache=Path("cache"), teacher="teacher", online="Qwen/absent", local_directory=Path("new")
    ).absolute()
    assert command == TrainCommand(
        cache=tmp_path / "cache",
        teacher=str(tmp_path / "teacher"),
        online="Qwen/absent",
        local_directory=tmp_path / "new",
    )
    assert list(command.inputs()) == [tmp_path / "cache", tmp_path / "teacher"]


def test_a_url_is_no_path() -> None:
    command = TrainCommand(cache="s3://bucket/cache", online="").absolute()
    assert command == TrainCommand(cache="s3://bucket/cache", online="")
    assert list(command.inputs()) == []
