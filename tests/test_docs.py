"""The documentation: its navigation has every page, its links lead somewhere, its notebook runs.

``docs/conf.py`` is loaded as Sphinx loads it, without Sphinx; `make docs` builds the site itself.
"""

import importlib
import json
import re
import runpy
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support import ROOT

_DOCS = ROOT / "docs"
_CONF: dict[str, Any] = runpy.run_path(str(_DOCS / "conf.py"))
_INDEX = (_DOCS / "index.md").read_text(encoding="utf-8")
_OUTSIDE = (ROOT / "README.md", ROOT / "CHANGELOG.md", ROOT / "cache_format" / "README.md")
_PAGES = {
    path.relative_to(ROOT).as_posix(): path
    for path in (*_OUTSIDE, *sorted(_DOCS.rglob("*.md")), *sorted(_DOCS.rglob("*.ipynb")))
}
_NOTEBOOKS = [page for page in _PAGES if page.endswith(".ipynb")]
_CODE = re.compile(r"^```.*?^```$|`[^`\n]+`", re.DOTALL | re.MULTILINE)
_LINK = re.compile(r"\]\((?![a-z]+:)([^)#]*)(?:#([^)]*))?\)")


def markdown(page: Path) -> str:
    text = page.read_text(encoding="utf-8")
    markdown_of: Any = _CONF["markdown_of"]
    return str(markdown_of(text)) if page.suffix == ".ipynb" else text


def links(text: str) -> Iterator[tuple[str, str]]:
    """File and anchor of every link to a file or a heading; either may be empty."""
    yield from _LINK.findall(_CODE.sub("", text))


def anchors(text: str) -> set[str]:
    """The anchors of a page's headings, as GitHub and the site name them."""
    without_blocks = re.sub(r"^```.*?^```$", "", text, flags=re.DOTALL | re.MULTILINE)
    found: Counter[str] = Counter()
    names = set()
    for heading in re.findall(r"^#{1,4} (.+)$", without_blocks, re.MULTILINE):
        name = re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-")
        names.add(f"{name}-{found[name]}" if found[name] else name)
        found[name] += 1
    return names


def test_anchors_are_named_as_on_github() -> None:
    text = "# A `b_c`: d\n## A\n## A\n```\n# no heading\n```\n"
    assert anchors(text) == {"a-b_c-d", "a", "a-1"}


def test_links_are_those_outside_of_code() -> None:
    text = "[a](b.md#c) [d](#e) [f](https://g) `[h](i)`\n```\n[j](k)\n```\n[l](m)\n"
    assert list(links(text)) == [("b.md", "c"), ("", "e"), ("m", "")]


def test_the_navigation_has_every_page_once() -> None:
    listed = [(_DOCS / entry.page).resolve() for entry in _CONF["entries"](_INDEX)]
    expected = {path.resolve() for path in _PAGES.values()} - {_DOCS / "index.md"}
    assert Counter(listed) == Counter(expected), "list each page once in docs/index.md"


def test_the_navigation_is_made_of_the_lists_of_the_index() -> None:
    one = "[no](item.md)\n\n## One\n\n- [A b](../c.md): d\n- [E](f/g.ipynb)\n"
    index = f"# T\n\n{one}\n## Two\n\n- [H](i.md)\n"
    assert _CONF["navigation"](index).splitlines() == [
        *("```{toctree}", ":hidden:", ":caption: One", "", "A b <../c>", "E <f/g>", "```", ""),
        *("```{toctree}", ":hidden:", ":caption: Two", "", "H <i>", "```"),
    ]


@pytest.mark.parametrize("page", _PAGES)
def test_links_lead_to_files_and_headings(page: str) -> None:
    path = _PAGES[page]
    for target, anchor in links(markdown(path)):
        file = (path.parent / target).resolve() if target else path
        assert file.is_file(), f"{page}: {target}"  # a site has no page for a directory
        assert file.is_relative_to(ROOT), f"{page}: {target}"
        if anchor:
            assert anchor in anchors(markdown(file)), f"{page}: {target}#{anchor}"


def documented_names() -> Iterator[str]:
    """What the pages of the Python reference take docstrings of."""
    for page in sorted((_DOCS / "api").glob("*.md")):
        yield from re.findall(r"^\.\. auto\w+:: (\S+)$", page.read_text(encoding="utf-8"), re.M)


@pytest.mark.parametrize("name", list(documented_names()))
def test_the_reference_documents_what_exists(name: str) -> None:
    try:
        found: object = importlib.import_module(name)
    except ModuleNotFoundError:
        module, _, attribute = name.rpartition(".")
        found = getattr(importlib.import_module(module), attribute)
    assert found.__doc__


@pytest.mark.parametrize(
    ("text", "is_found"),
    [
        ('<script src="https://cdn.example/a.js"></script>', True),
        ('<link rel="stylesheet" href="//fonts.example/b.css">', True),
        ('<img alt="c" src="http://c.example/d.png">', True),
        ("<style>@import url(https://e.example/f.css)</style>", True),
        ("<style>a {background: url('//g.example/h.png')}</style>", True),
        ('<a href="https://arxiv.org/abs/2503.18565">paper</a>', False),
        ('<script src="_static/doctools.js"></script><img src="i.svg">', False),
    ],
)
def test_assets_from_elsewhere_are_found(text: str, is_found: bool, tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "page.html").write_text(text, encoding="utf-8")
    found = _CONF["external_assets"](tmp_path)
    assert [line.split(":")[0] for line in found] == ["deep/page.html"] * is_found


@pytest.mark.parametrize("page", _NOTEBOOKS)
def test_notebooks_are_stored_without_outputs(page: str) -> None:
    cells = json.loads(_PAGES[page].read_text(encoding="utf-8"))["cells"]
    code = [cell for cell in cells if cell["cell_type"] == "code"]
    assert code
    for cell in code:
        assert cell["outputs"] == []
        assert cell["execution_count"] is None


@pytest.mark.slow
def test_the_notebook_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import matplotlib as mpl

    mpl.use("Agg")
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    path = _DOCS / "notebooks" / "both-stages.ipynb"
    names: dict[str, Any] = {}
    for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
        if cell["cell_type"] == "code":
            exec("".join(cell["source"]), names)
    losses = [loss for _, loss in names["validations"]]
    assert losses[-1] < losses[0] / 2
    (curve, _) = names["axes"].get_lines()
    assert curve.get_ydata().tolist() == losses
    printed = capsys.readouterr().out
    assert "' know' →  's' " in printed  # what the teacher expected
    assert printed.rstrip().rpartition("nats\n")[2].startswith("The editor")
    assert names["work"].is_relative_to(tmp_path)
