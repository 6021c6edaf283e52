"""Write the demo's corpus: the documentation text of the Python that runs it.

In: the standard library and the packages installed beside this one. Out: one Parquet file in
FineWeb's schema (``text``, ``id``, ``dump``, ``url``, …), so that the ordinary loading code reads
it.

A document is one module's docstrings, one documentation file, or one package description. Every
document has a side, decided by the hash of its *name*: the demo's teacher was trained on side
``teacher`` only, and the demo caches side ``demo`` only, so that no student is ever scored on a
document its teacher has seen, whatever versions of the packages are installed.
"""

import ast
import hashlib
import sysconfig
import warnings
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Literal, NamedTuple

Side = Literal["teacher", "demo"]

_MIN_CHARS = 400
_MAX_CHARS = 40_000
_DOC_SUFFIXES = {".rst", ".md", ".txt"}
_SKIPPED_DIRS = {"test", "tests", "idle_test", "__pycache__", "_vendor", "site-packages"}
_SKIPPED_STEMS = ("license", "licence", "copying", "notice", "authors", "record", "top_level")
_OWN_PACKAGES = {"pipeline", "stages", "cache_format"}
_BOILERPLATE = ("transformers/models/",)  # the same paragraphs in some 400 modules


class Document(NamedTuple):
    """One document and the name its side is decided by."""

    name: str
    text: str


def side_of(name: str) -> Side:
    """The side of the document called ``name``: a fair coin from its SHA-256."""
    return "teacher" if hashlib.sha256(name.encode()).digest()[0] % 2 == 0 else "demo"


def documents(side: Side) -> Iterator[Document]:
    """Every document of ``side``, in the order of its names' hashes; no paragraph comes twice."""
    seen: set[str] = set()
    for name, path in _candidates():
        if side_of(name) == side:
            for part, text in enumerate(_pieces(_fresh_paragraphs(_text_of(path), seen))):
                yield Document(f"{name}#{part}", text)


def write_parquet(target: Path, side: Side, num_chars: int) -> int:
    """Write documents of ``side`` until ``num_chars`` characters; returns the characters written.

    Row groups hold 64 documents, FineWeb's columns, and nothing that varies between two runs on
    one machine. The file is published by rename: it is whole or absent.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    from cache_format.storage.atomic import atomic_file

    schema = pa.schema(
        [
            ("text", pa.string()),
            ("id", pa.string()),
            ("dump", pa.string()),
            ("url", pa.string()),
            ("date", pa.string()),
            ("file_path", pa.string()),
            ("language", pa.string()),
            ("language_score", pa.float64()),
            ("token_count", pa.int64()),
        ]
    )
    written = 0
    rows: list[dict[str, object]] = []
    with atomic_file(target) as sink, pq.ParquetWriter(sink, schema, compression="zstd") as writer:
        for document in documents(side):
            digest = hashlib.sha256(document.text.encode()).hexdigest()
            rows.append(
                {
                    "text": document.text,
                    "id": f"<urn:sha256:{digest[:32]}>",
                    "dump": "python-documentation",
                    "url": f"python://{document.name}",
                    "date": "",
                    "file_path": document.name,
                    "language": "en",
                    "language_score": 1.0,
                    "token_count": len(document.text.split()),
                }
            )
            written += len(document.text)
            if len(rows) == 64:
                writer.write_table(pa.Table.from_pylist(rows, schema=schema))
                rows = []
            if written >= num_chars:
                break
        if rows:
            writer.write_table(pa.Table.from_pylist(rows, schema=schema))
    return written


@cache  # what is installed stays so, and a walk through it takes a second
def _candidates() -> tuple[tuple[str, Path], ...]:
    roots = {Path(sysconfig.get_paths()[key]) for key in ("stdlib", "purelib", "platlib")}
    found: dict[str, Path] = {}
    for root in sorted(roots):
        for path in root.rglob("*"):
            relative = path.relative_to(root)
            is_document = path.suffix in {".py", *_DOC_SUFFIXES} or path.name == "METADATA"
            if is_document and _is_wanted(relative):
                found.setdefault(relative.as_posix(), path)
    return tuple(sorted(found.items(), key=lambda item: hashlib.sha256(item[0].encode()).digest()))


def _is_wanted(relative: Path) -> bool:
    directories = relative.parts[:-1]
    return (
        not _SKIPPED_DIRS.intersection(directories)
        and not relative.stem.lower().startswith(_SKIPPED_STEMS)
        and "licenses" not in directories
        and not relative.as_posix().startswith(_BOILERPLATE)
        and (not directories or directories[0] not in _OWN_PACKAGES)
    )


def _text_of(path: Path) -> str:
    try:
        source = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return ""
    if path.name == "METADATA":
        return source.partition("\n\n")[2]
    return _docstrings(source) if path.suffix == ".py" else source


def _docstrings(source: str) -> str:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            tree = ast.parse(source)
    except (SyntaxError, ValueError, RecursionError):
        return ""
    parts = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            text = ast.get_docstring(node)
            if text and len(text) > 60:
                parts.append(text if isinstance(node, ast.Module) else f"{node.name}\n{text}")
        elif isinstance(node, ast.Dict) and len(node.values) > 20:
            parts.extend(_long_strings(node))
    return "\n\n".join(parts)


def _long_strings(node: ast.Dict) -> list[str]:
    """The values of a large literal table of texts, as ``pydoc_data.topics`` keeps them."""
    values = [v.value for v in node.values if isinstance(v, ast.Constant)]
    return [value for value in values if isinstance(value, str) and len(value) > 500]


def _fresh_paragraphs(text: str, seen: set[str]) -> str:
    """``text`` without the longer paragraphs that are in ``seen``, to which it adds its own."""
    fresh = []
    for paragraph in "\n".join(line.rstrip() for line in text.strip().splitlines()).split("\n\n"):
        if len(paragraph) < 80 or paragraph not in seen:
            fresh.append(paragraph)
            seen.add(paragraph)
    return "\n\n".join(fresh)


def _pieces(text: str) -> Iterator[str]:
    """``text`` cut at paragraphs into pieces of bounded length; nothing if it is not English."""
    letters = sum(character.isalpha() or character.isspace() for character in text)
    if not text.isascii() and sum(not c.isascii() for c in text) > len(text) // 50:
        return
    if len(text) < _MIN_CHARS or letters < 0.75 * len(text):
        return
    piece = ""
    for paragraph in text.split("\n\n"):
        if piece and len(piece) + len(paragraph) > _MAX_CHARS:
            yield piece
            piece = ""
        piece += ("\n\n" if piece else "") + paragraph[:_MAX_CHARS]
    if len(piece) >= _MIN_CHARS:
        yield piece
