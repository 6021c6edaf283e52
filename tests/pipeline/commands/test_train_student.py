"""Options of ``pipeline train-student`` that are refused."""

from pathlib import Path

import pytest

from tests.support.command_line import run


def test_settings_of_cache_teacher_are_refused_by_train_student(tmp_path: Path) -> None:
    result = run(
        *("train-student", "--recipe", "demo", "--cache", tmp_path, "--out", tmp_path / "run"),
        *("--set", "cache_teacher.top_k=8"),
    )
    assert result.exit_code == 2
    assert "--set cache_teacher.top_k=8: this command does not read" in result.stderr


@pytest.mark.parametrize("number", ["inf", "nan", "1e300", "0"])
def test_an_impossible_local_gib_is_refused(tmp_path: Path, number: str) -> None:
    result = run(
        *("train-student", "--recipe", "demo", "--cache", tmp_path, "--out", tmp_path / "run"),
        *("--local-gib", number),
    )
    assert result.exit_code == 2
    assert "Invalid value for '--local-gib'" in result.stderr
