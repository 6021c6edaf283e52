"""``pipeline inspect``."""

import json
from pathlib import Path

from tests.support.command_line import run


def test_inspect_prints_a_text_summary(tiny_cache: Path) -> None:
    result = run("inspect", tiny_cache)
    assert result.exit_code == 0, result.output
    assert ": complete" in result.output


def test_inspect_json_prints_the_summary_or_the_row_asked_for(tiny_cache: Path) -> None:
    summary = json.loads(run("inspect", tiny_cache, "--json").output)
    assert summary["spec"]["targets"]["kept"]["top_k"] == 12
    decoded = json.loads(
        run("inspect", tiny_cache, "--json", "--row", "1", "--split", "validation").output
    )
    assert (decoded["split"], decoded["row"]) == ("validation", 1)


def test_inspect_row_prints_the_split_the_row_and_its_unit(tiny_cache: Path) -> None:
    result = run("inspect", tiny_cache, "--row", "0")
    assert result.output.startswith("train row 0, unit 1: ")


def test_a_directory_without_a_cache_is_refused(tmp_path: Path) -> None:
    result = run("inspect", tmp_path)
    assert result.exit_code == 1
    assert "not a cache: expected manifest.json" in result.stderr
