"""Options of ``pipeline generate`` that are refused."""

from pathlib import Path

import pytest

from tests.support.command_line import run


@pytest.mark.parametrize("number", ["inf", "nan", "-1"])
def test_an_invalid_temperature_is_refused(tmp_path: Path, number: str) -> None:
    result = run("generate", tmp_path, "--prompt", "a", "--temperature", number)
    assert result.exit_code == 2
    assert "Invalid value for '--temperature'" in result.stderr
