"""``pipeline inspect``."""

import json
from pathlib import Path

from tests.support.command_line import run


def test_text(tiny_cache: Path) -> None:
    result = run("inspect", tiny_cache)
    assert result.exit_code == 0, result.output
    assert ": complete" in result.output


def test_json(tiny_cache: Path) -> None:
    summary = json.loads(run("inspect", tiny_cache, "--json").output)
    assert summary["spec"]["targets"]["top_k"] == 12
    decoded = json.loads(
        run("inspect", tiny_cache, "--json", "--row", "1", "--split", "validation").output
    )
    assert (decoded["split"], decoded["row"]) == ("validation", 1)


def test_row(tiny_cache: Path) -> None:
    result = run("inspect", tiny_cache, "--row", "0")
    assert result.output.startswith("train row 0, unit 1: ")


def test_no_cache(tmp_path: Path) -> None:
    result = run("inspect", tmp_path)
    assert result.exit_code == 1
    assert "not a cache: expected manifest.json" in result.stderr
