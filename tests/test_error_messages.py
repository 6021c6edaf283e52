"""The pages about errors: every message is found in the source, every class has a line."""

import json
import re
import runpy
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.support import ROOT

_CONF: dict[str, Any] = runpy.run_path(str(ROOT / "docs" / "conf.py"))
_PAGE_OF: Any = _CONF["with_messages"]
_PAGE = (ROOT / "docs" / "error-messages.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def source() -> Any:
    return _PAGE_OF.__globals__["Source"](ROOT)


@pytest.fixture(scope="module")
def page() -> str:
    return str(_PAGE_OF(_PAGE, ROOT))


def written(tmp_path: Path, code: str) -> str:
    """The page of a program that is one module."""
    for package in ("cache_format", "stages", "pipeline"):
        (tmp_path / package).mkdir()
    (tmp_path / "stages" / "one.py").write_text(code, encoding="utf-8")
    return str(
        _PAGE_OF("# T\n\n```{error-messages}\npipeline\ncache_format stages\n```\n", tmp_path)
    )


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ('raise ValueError(f"{path}: not there")', ["`…: not there`"]),
        (
            '_STEP = "Run again."\nraise ValueError(f"it failed. {_STEP}")',
            ["`it failed. Run again.`"],
        ),
        ('raise ValueError("more" if a else "fewer")', ["`fewer`", "`more`"]),
        (
            "def _require(holds: bool, key: str, allowed: str) -> None:\n"
            '    raise ValueError(f"{key}: must be {allowed}")\n'
            "def check(self):\n"
            '    for key in ("a", "b"):\n        _require(x, key, "1 or more")\n'
            '    for key in ("c", "d"):\n        _require(x, key, "above 0")\n',
            [f"`{key}`" for key in ("a: must be 1 or more", "b: must be 1 or more")]
            + [f"`{key}`" for key in ("c: must be above 0", "d: must be above 0")],
        ),
        (
            "class _Reader:\n"
            "    def _corrupt(self, what: str) -> CacheError:\n"
            '        return CacheError(f"{self.name}: {what}", "Copy it again.")\n'
            '    def read(self):\n        raise self._corrupt("cut short")\n',
            ["`…: cut short`", "  - `Copy it again.`"],
        ),
        (
            'raise AdvisedError("it failed.", NextStep("Run again."))',
            ["`it failed.`", "  - `Run again.`"],
        ),
        (
            'class OwnError(ValueError): ...\nraise OwnError("it failed")',
            ["`it failed` (`OwnError`)"],
        ),
        ('raise ValueError(f"{path}: {error}")', []),
        ('raise ValueError("run `it` again")', ["``` run `it` again ```"]),
    ],
)
def test_messages_are_read_from_the_source(code: str, expected: list[str], tmp_path: Path) -> None:
    lines = written(tmp_path, code).splitlines()[2:]
    assert [line.removeprefix("- ") for line in lines if line] == expected


@pytest.mark.parametrize(
    "line",
    [
        "- `num_tokens: must be 1 or more`",  # a check of a config
        "- `batch_size: must be 1 or more`",  # of several keys in a loop
        "- `…: at byte …: something follows its end` (`CorruptArchiveError`)",
        "- `…: another process is training into it.` (`AdvisedError`)\n  - `Wait for it, or ",
        "- `…: no space left on the disk or in the quota while writing it. No partial file was "
        "published.` (`NoSpaceError`)",
    ],
)
def test_known_messages_are_on_the_page(line: str, page: str) -> None:
    assert line in page


def test_no_entry_is_empty(page: str) -> None:
    entries = re.findall(r"^ *- (.*)$", page, re.MULTILINE)
    assert len(entries) > 600
    assert [entry for entry in entries if not re.search(r"[^\W\d_]{2}", entry)] == []


def test_nearly_all_places_that_make_an_error_are_understood(source: Any) -> None:
    """The others only add a path to another error's message."""
    has_words = _PAGE_OF.__globals__["has_words"]
    places: dict[tuple[str, int], bool] = {}
    for message in source.messages():
        place = (message.module, message.line)
        places[place] = places.get(place, False) or has_words(message.text)
    assert sum(places.values()) >= 0.94 * len(places)


def test_every_heading_of_the_page_has_messages(page: str) -> None:
    empty = re.findall(r"^## (.+)\n+(?=## |\Z)", page, re.MULTILINE)
    assert empty == []


def test_every_class_of_errors_has_a_line(source: Any) -> None:
    text = (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
    section = text.partition("## Kinds of errors\n")[2].partition("\n## ")[0]
    lines = re.findall(r"^\| `(\w+)` \|", section, re.MULTILINE)
    assert sorted(lines) == sorted(source.error_classes)


@pytest.mark.skipif(shutil.which("node") is None, reason="needs node, to run the site's script")
def test_the_search_finds_a_pasted_message_among_all(page: str) -> None:
    script = (ROOT / "docs" / "pasted_messages.js").read_text(encoding="utf-8")
    index = {"docnames": ["docs/a", "docs/error-messages"], "titleterms": {"merg": [0, 1]}}
    index["terms"] = {"cach": [0, 1], "train": 1, "process": 1, "student": 0}
    asked = {
        "/runs/7: another process is training into it": ["process", "train"],
        "another topic of students in other words": None,
        "merge caches": None,
    }
    terms = [["7", "process", "train"], ["topic", "student"], ["merg", "cach"]]
    messages = re.findall(r"^- .*$", page, re.MULTILINE)
    calls = f"""
        globalThis.document = {{ getElementById: () => null }};
        {script}
        const asked = {json.dumps(list(zip(asked, terms, strict=True)))};
        const index = {json.dumps(index)};
        const pasted = "/runs/7: another process is training into it. Wait for it.";
        console.log(JSON.stringify([
          asked.map(([query, terms]) => termsOfMessage(query, new Set(terms), index)),
          closest(pasted, {json.dumps(messages)}), closest("merge caches", ["merge caches"]),
        ]));
    """
    ran = subprocess.run(["node", "-"], input=calls, capture_output=True, text=True, check=True)
    found, nearest, too_short = json.loads(ran.stdout)
    assert found == list(asked.values())
    assert messages[nearest] == "- `…: another process is training into it.` (`AdvisedError`)"
    assert too_short == -1
