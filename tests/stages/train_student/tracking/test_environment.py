"""What a run records of where it was computed."""

from pathlib import Path

import pytest
import torch

from stages.train_student.checkpoints.run_record import read_record
from stages.train_student.tracking.environment import _commit, run_environment
from tests.support.train_configs import tiny_train_config
from tests.support.train_runs import run


def test_versions_and_machine() -> None:
    found = run_environment(torch.device("cpu"), 2)
    assert found["torch"] == torch.__version__
    assert found["processes"] == "2"
    assert "processors" in found["device"]
    assert all(found.values())


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    (tmp_path / ".git/refs/heads").mkdir(parents=True)
    (tmp_path / ".git/HEAD").write_text("ref: refs/heads/main\n")
    (tmp_path / ".git/refs/heads/main").write_text("0123abc\n")
    return tmp_path


def test_the_commit_of_a_checkout(checkout: Path) -> None:
    assert _commit(checkout) == "0123abc"
    (checkout / ".git/HEAD").write_text("4567def\n")
    assert _commit(checkout) == "4567def"


def test_the_commit_of_a_worktree(checkout: Path) -> None:
    own = checkout / ".git/worktrees/other"
    own.mkdir(parents=True)
    (own / "HEAD").write_text("ref: refs/heads/main\n")
    (own / "commondir").write_text("../..\n")
    (checkout / "other").mkdir()
    (checkout / "other/.git").write_text(f"gitdir: {own}\n")
    assert _commit(checkout / "other") == "0123abc"


def test_no_checkout_has_no_commit(tmp_path: Path) -> None:
    assert _commit(tmp_path) == ""


def test_a_run_records_its_environment_and_what_a_pass_reads(
    tiny_cache: Path, tmp_path: Path
) -> None:
    config = tiny_train_config(max_steps=1, report_to=())
    run(config, tiny_cache, tmp_path / "run")
    record = read_record(tmp_path / "run")
    assert record.environment is not None
    assert record.environment["processes"] == "1"
    assert record.data is not None
    assert record.data.sequence_length == 32
    assert record.data.train_bytes > 1000
    run(config, tiny_cache, tmp_path / "run", resume=True)
    assert read_record(tmp_path / "run") == record
