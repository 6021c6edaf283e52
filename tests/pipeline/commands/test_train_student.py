"""Options of ``pipeline train-student`` that are refused."""

from pathlib import Path

import pytest

from tests.support.command_line import run


def test_it_reads_its_own_table(tmp_path: Path) -> None:
    result = run(
        *("train-student", "--recipe", "demo", "--cache", tmp_path, "--out", tmp_path / "run"),
        *("--set", "cache_teacher.top_k=8"),
    )
    assert result.exit_code == 2
    assert "--set cache_teacher.top_k=8: this command does not read" in result.stderr


@pytest.mark.parametrize("number", ["inf", "nan", "1e300", "0"])
def test_local_gib(tmp_path: Path, number: str) -> None:
    result = run(
        *("train-student", "--recipe", "demo", "--cache", tmp_path, "--out", tmp_path / "run"),
        *("--local-gib", number),
    )
    assert result.exit_code == 2
    assert "Invalid value for '--local-gib'" in result.stderr
