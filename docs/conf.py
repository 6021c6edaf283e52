"""How `make docs` makes a site of README, docs/ and the format's specification, with Sphinx.

The sources are read where they lie, so that links between them are the same on the site and in a
checkout. The lists of links in ``index.md`` are the navigation. Nothing is fetched, neither by the
build nor by a reader's browser.
"""

import json
import re
import sys
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

sys.path.insert(0, str(Path(__file__).parent))

from error_page import with_messages

if TYPE_CHECKING:
    from docutils.nodes import document
    from sphinx.application import Sphinx

project = "xlstm-distill"
root_doc = "docs/index"
include_patterns = ["README.md", "CHANGELOG.md", "cache_format/README.md", "docs/**"]
source_suffix = {".md": "markdown", ".ipynb": "markdown"}
extensions = ["myst_parser", "sphinx.ext.autodoc"]

myst_heading_anchors = 4
highlight_language = "text"
autodoc_default_options = {"undoc-members": True}
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
autodoc_typehints_format = "short"
python_use_unqualified_type_names = True
toc_object_entries_show_parents = "hide"
python_maximum_signature_line_length = 88

html_theme = "furo"
html_title = project
html_static_path = ["site.css", "pasted_messages.js"]
html_css_files = ["site.css"]
html_js_files = [("pasted_messages.js", {"defer": "defer"})]
html_copy_source = False
html_show_sphinx = False
html_show_copyright = False

_GROUP = re.compile(r"^## (.+)$")
_ENTRY = re.compile(r"^- \[(.+?)\]\(([^):#]+)\)")
_COMMANDS = re.compile(r"^```\n(?=(?:make|pip|pipeline|python|srun|torchrun|\.) )", re.MULTILINE)
_LOADED = re.compile(
    r"""<(?:script|link|img|iframe|source|video|audio)\b[^>]*?\b(?:src|srcset|href)="(?:https?:)?//"""
    r"""|(?:@import|url\()\s*(?:url\()?["']?(?:https?:)?//"""
)
_ARRAY = re.compile(r"ndarray\[tuple\[Any, \.\.\.\], dtype\[(\w+)\]\]")


class Entry(NamedTuple):
    """A page in the navigation."""

    group: str
    title: str
    page: str
    """Its file, relative to that of the index."""


def entries(index: str) -> list[Entry]:
    """The pages that the index lists, in its order: items of a list that begin with a link."""
    found, group = [], ""
    for line in index.splitlines():
        if heading := _GROUP.match(line):
            group = heading[1]
        elif entry := _ENTRY.match(line):
            found.append(Entry(group, entry[1], entry[2]))
    return found


def navigation(index: str) -> str:
    """What the index lists, as the directives that Sphinx takes its navigation from."""
    blocks = []
    for group, pages in groupby(entries(index), key=lambda entry: entry.group):
        lines = "\n".join(f"{title} <{Path(page).with_suffix('')}>" for _, title, page in pages)
        blocks.append(f"```{{toctree}}\n:hidden:\n:caption: {group}\n\n{lines}\n```\n")
    return "\n".join(blocks)


def markdown_of(notebook: str) -> str:
    """The cells of a notebook: its text as it is, its code in blocks."""
    parts = []
    for cell in json.loads(notebook)["cells"]:
        text = "".join(cell["source"])
        parts.append(text if cell["cell_type"] == "markdown" else f"```python\n{text}\n```")
    return "\n\n".join(parts) + "\n"


def external_assets(site: Path) -> list[str]:
    """The pages and style sheets of a site that make a browser load something from elsewhere."""
    files = sorted(path for path in site.rglob("*") if path.suffix in {".html", ".css"})
    return [
        f"{path.relative_to(site)}: {found[0]}"
        for path in files
        for found in _LOADED.finditer(path.read_text(encoding="utf-8"))
    ]


def _read(app: "Sphinx", name: str, source: list[str]) -> None:
    if app.env.doc2path(name).suffix == ".ipynb":
        source[0] = markdown_of(source[0])
        return
    if name == "docs/error-messages":
        source[0] = with_messages(source[0], Path(app.srcdir))
    source[0] = _COMMANDS.sub("```bash\n", source[0])
    if name == root_doc:
        source[0] += "\n" + navigation(source[0])


def _without_fields(app: "Sphinx", what: str, *_: object) -> tuple[str, None] | None:
    """No signature of a class: it would repeat the fields, which follow with their meaning."""
    return ("", None) if what in {"class", "exception"} else None


def _shorten(app: "Sphinx", doctree: "document", name: str) -> None:
    """Write types of arrays as the sources do: ``NDArray[int32]``."""
    from docutils.nodes import Text
    from sphinx.addnodes import desc_annotation, desc_returns

    for node in doctree.findall(lambda node: isinstance(node, (desc_annotation, desc_returns))):
        text = _ARRAY.sub(r"NDArray[\1]", node.astext())
        if text != node.astext():
            node.children = [Text(text)]


def _finish(app: "Sphinx", error: Exception | None) -> None:
    from sphinx.util.logging import getLogger

    if error is not None:
        return
    for found in external_assets(Path(app.outdir)):
        getLogger(__name__).warning("loads what is not on the site: %s", found)
    to_index = f'<!doctype html><meta http-equiv="refresh" content="0; url={root_doc}.html">\n'
    Path(app.outdir, "index.html").write_text(to_index, encoding="utf-8")


def setup(app: "Sphinx") -> None:
    """Called by Sphinx."""
    app.connect("source-read", _read)
    app.connect("autodoc-process-signature", _without_fields)
    app.connect("doctree-resolved", _shorten)
    app.connect("build-finished", _finish)
