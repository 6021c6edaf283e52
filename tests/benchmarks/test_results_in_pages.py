"""The pages hold the figures of the files of results, and no others where they say so."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from benchmarks import results_in_pages
from benchmarks.result_files import DIRECTORY, block, is_of, load_result, numbers
from benchmarks.results_in_pages import COMMAND, PAGES, rendered, unknown_numbers
from tests.support import ROOT

_TEXTS = {page: (ROOT / page).read_text("utf-8") for page in PAGES}
RESULT: dict[str, Any] = {
    "command": "measure --steps 100",
    "environment": "a CPU",
    "date": "2026-11-30",
    "rows_are": "targets",
    "columns": {
        "bytes": {"heading": "bytes/token", "format": ",.1f"},
        "loss": {"heading": "loss", "format": ".3f"},
        "kl": {"heading": "KL", "format": ".1e"},
        "gain": {"heading": "gain", "format": "g", "unit": " %"},
    },
    "rows": [
        {"name": "`top_k`, 32", "bytes": 1053.4, "loss": {"mean": 4.12, "deviation": 0.01}},
        {"name": "few", "kl": 0.00018, "loss": {"median": -1.0, "min": -2.0, "max": 0.5}},
        {"name": "one seed", "kl": 0.69, "loss": {"mean": 3.0, "deviation": None}, "gain": 99},
        {"name": "others", "format": ".0f", "bytes": "about 440", "loss": 7.0},
    ],
    "figures": {"minutes": 24},
}
TABLE = """\
| targets | bytes/token | loss | KL | gain |
|---|---|---|---|---|
| `top_k`, 32 | 1,053.4 | 4.120 ±0.010 | | |
| few | | −1.000 (−2.000, 0.500) | 1.8e-4 | |
| one seed | | 3.000 | 0.69 | 99 % |
| others | about 440 | 7 | | |
"""


@pytest.mark.parametrize("page", PAGES)
def test_tables_are_those_of_the_files(page: str) -> None:
    assert _TEXTS[page] == rendered(_TEXTS[page]), f"`{COMMAND}` renders {page} anew"


@pytest.mark.parametrize("page", PAGES)
def test_texts_have_no_figures_but_those_of_the_files(page: str) -> None:
    assert list(unknown_numbers(_TEXTS[page])) == []


@pytest.mark.parametrize("page", PAGES)
def test_no_line_of_a_paragraph_begins_with_a_marker(page: str) -> None:
    """To Markdown, it would be HTML as far as the line goes, links and code within it included."""
    assert re.findall(r"^ *<!-- figures.*", _TEXTS[page], re.M) == []
    assert re.findall(r"^ *<!-- end -->.+", _TEXTS[page], re.M) == []


def test_every_file_is_in_a_page() -> None:
    shown = set(re.findall(r"<!-- results:(\S+)", "".join(_TEXTS.values())))
    assert shown == {path.stem for path in DIRECTORY.glob("*.json")}


def test_every_table_of_the_results_is_of_a_file() -> None:
    by_hand = re.sub(r"<!-- results:.*?<!-- end -->", "", _TEXTS["docs/results.md"], flags=re.S)
    assert "\n|" not in by_hand


def test_a_result_becomes_a_table() -> None:
    assert block(RESULT) == TABLE
    assert block(RESULT, ["gain", "kl"]) == (
        "| targets | gain | KL |\n|---|---|---|\n| few | | 1.8e-4 |\n| one seed | 99 % | 0.69 |\n"
    )
    assert block({"printed": ["a", " b"]}) == "```\na\n b\n```\n"


def test_a_table_replaces_what_is_between_its_markers() -> None:
    page = "before\n\n<!-- results:mine -->\n| old |\n<!-- end -->\nafter 1\n"
    made = rendered(page, {"mine": RESULT}.__getitem__)
    assert made == f"before\n\n<!-- results:mine -->\n{TABLE}<!-- end -->\nafter 1\n"
    assert rendered(made, {"mine": RESULT}.__getitem__) == made
    chosen = rendered(page.replace("mine", "mine gain"), {"mine": RESULT}.__getitem__)
    assert "| one seed | 99 % |" in chosen
    assert "bytes" not in chosen


@pytest.mark.parametrize(
    ("page", "expected"),
    [
        ("<!-- results:mine -->\n", "each marker needs an <!-- end -->"),
        ("<!-- results:mine -->\n<!-- figures:mine --><!-- end -->\n", "each marker needs"),
        ("<!-- end -->\n<!-- end -->\n", "each marker needs"),
        ("<!-- results:mine speed -->\n<!-- end -->\n", "results:mine: no column 'speed'"),
    ],
)
def test_markers_that_say_nothing_are_refused(page: str, expected: str) -> None:
    with pytest.raises(ValueError, match=expected):
        rendered(page, {"mine": RESULT}.__getitem__)


@pytest.mark.parametrize(
    ("text", "unknown"),
    [
        ("99 % at 1,053.4 bytes with 32 ids, after 100 steps and 24 minutes", []),
        ("about 1053 bytes, a KL of 2e-4 and 0.7 (±0.01)", []),
        ("98 % at 1,053.5 bytes", ["98", "1,053.5"]),
        ("a KL of 1.9e-4, see [there](page-7.md) and top_5", ["1.9e-4"]),
    ],
)
def test_numbers_of_a_text_are_looked_up(text: str, unknown: list[str]) -> None:
    page = f"77 <!-- figures:mine -->{text}<!-- end --> 78"
    found = unknown_numbers(page, {"mine": RESULT}.__getitem__)
    assert [problem.split()[0] for problem in found] == unknown


def test_numbers_are_compared_by_the_digits_shown() -> None:
    found = list(numbers(RESULT))
    assert 2026 not in found  # of the date
    assert is_of("1,053", found)
    assert is_of("4.12", found)
    assert not is_of("4.13", found)
    assert not is_of("2.0e-4", found)


@pytest.mark.parametrize(
    ("missing", "expected"), [("environment", "without environment"), ("date", "without the date")]
)
def test_a_file_names_its_source(missing: str, expected: str, tmp_path: Path) -> None:
    path = tmp_path / "mine.json"
    path.write_text(json.dumps(RESULT))
    assert load_result("mine", tmp_path) == RESULT
    path.write_text(json.dumps({key: value for key, value in RESULT.items() if key != missing}))
    with pytest.raises(ValueError, match=expected):
        load_result("mine", tmp_path)
    with pytest.raises(ValueError, match="no such result; there are: mine"):
        load_result("yours", tmp_path)


def test_the_command_writes_the_tables_and_names_what_it_cannot_mend(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stale = "<!-- results:kept-ids -->\n| old |\n<!-- end -->\n"
    (tmp_path / "docs").mkdir()
    (tmp_path / "README.md").write_text("nothing\n")
    (tmp_path / "docs/results.md").write_text(stale)
    monkeypatch.setattr(results_in_pages, "_ROOT", tmp_path)
    said = CliRunner().invoke(results_in_pages.results)
    assert (said.exit_code, said.stdout) == (
        0,
        "docs/results.md: rendered from benchmarks/results/tables\n",
    )
    made = (tmp_path / "docs/results.md").read_text()
    assert made == stale.replace("| old |\n", block(load_result("kept-ids")))
    assert CliRunner().invoke(results_in_pages.results).stdout == ""
    (tmp_path / "README.md").write_text("a <!-- figures:kept-ids -->58.2, 58.3<!-- end -->\n")
    refused = CliRunner().invoke(results_in_pages.results)
    assert refused.exit_code == 1
    assert "README.md: 58.3 is none of the figures of kept-ids. Mend the text" in refused.stderr
    (tmp_path / "README.md").write_text("<!-- results:nothing -->\n<!-- end -->\n")
    refused = CliRunner().invoke(results_in_pages.results)
    assert "README.md:" in refused.stderr
    assert "no such result; there are:" in refused.stderr
