"""Where a run's model is looked for, and what is said where there is none."""

from pathlib import Path

import pytest

from cache_format.errors import NextStep
from stages.next_steps import StageAction
from stages.train_student.export.model_directory import find_model_directory, no_student


@pytest.mark.parametrize("name", ["run", "run/model"])
def test_a_model_is_found_by_its_run_or_its_own_path(tmp_path: Path, name: str) -> None:
    (tmp_path / "run/model").mkdir(parents=True)
    assert find_model_directory(tmp_path / name) is None
    (tmp_path / "run/model/config.json").touch()
    assert find_model_directory(tmp_path / name) == tmp_path / "run/model"


def test_the_error_names_what_an_unfinished_run_lacks(tmp_path: Path) -> None:
    (tmp_path / "run.json").touch()
    assert "there is no checkpoint yet. Resume it." in str(no_student(tmp_path))
    (tmp_path / "checkpoints/step-0000001").mkdir(parents=True)
    error = no_student(tmp_path)
    assert "there is no model yet. Resume it." in str(error)
    assert error.next_step.actions == (StageAction.RESUME,)


def test_a_directory_that_is_no_run_is_named(tmp_path: Path) -> None:
    error = no_student(tmp_path)
    assert str(error) == f"{tmp_path}: neither a run of stage two nor a model directory"
    assert error.next_step == NextStep("")
