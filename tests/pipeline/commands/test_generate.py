"""Options of ``pipeline generate`` that are refused."""

from pathlib import Path

import pytest

from tests.support.command_line import run


@pytest.mark.parametrize("number", ["inf", "nan", "-1", "1e-320", "9e-7", "1e7"])
def test_an_invalid_temperature_is_refused(tmp_path: Path, number: str) -> None:
    result = run("generate", tmp_path, "--prompt", "a", "--temperature", number)
    assert result.exit_code == 2
    assert "Invalid value for '--temperature'" in result.stderr


@pytest.mark.parametrize(
    ("option", "number"),
    [
        *(("--seed", number) for number in ("-1", str(2**32), str(10**30))),
        *(("--top-k", number) for number in ("0", str(2**31), str(10**30))),
        *(("--max-new-tokens", number) for number in ("0", str(2**31), str(10**30))),
    ],
)
def test_integers(tmp_path: Path, option: str, number: str) -> None:
    result = run("generate", tmp_path, "--prompt", "a", option, number)
    assert result.exit_code == 2
    assert f"Invalid value for '{option}'" in result.stderr


@pytest.mark.parametrize(
    ("command", "option", "number"),
    [
        *((command, "--threads", "1025") for command in ("verify", "pack", "merge", "export")),
        *(("evaluate", option, str(2**31)) for option in ("--rows", "--limit", "--batch-size")),
        ("demo", "--seed", str(2**32)),
        ("cache-teacher", "--ray-workers", "65537"),
        ("inspect", "--row", str(2**63)),
    ],
)
def test_of_other_commands(tmp_path: Path, command: str, option: str, number: str) -> None:
    places = [] if command in ("demo", "cache-teacher") else [tmp_path, tmp_path / "new"]
    result = run(command, option, number, *places)
    assert result.exit_code == 2
    assert f"Invalid value for '{option}'" in result.stderr
