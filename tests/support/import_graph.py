"""Which modules import which."""

import ast
from collections.abc import Iterator
from functools import cache
from typing import NamedTuple

from tests.support import ROOT

OURS = ("pipeline", "stages", "cache_format")


class Import(NamedTuple):
    """One module that a source file names in an import."""

    where: str
    importer: str
    imported: str


@cache
def imports() -> tuple[Import, ...]:
    """Every import of our packages, those in functions and under ``TYPE_CHECKING`` included."""
    return tuple(_imports())


def _imports() -> Iterator[Import]:
    for package in OURS:
        for path in sorted((ROOT / package).rglob("*.py")):
            importer = ".".join(path.relative_to(ROOT).with_suffix("").parts)
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                for line, imported in _named(node):
                    yield Import(f"{path.relative_to(ROOT)}:{line}", importer, imported)


def _named(node: ast.AST) -> Iterator[tuple[int, str]]:
    if isinstance(node, ast.Import):
        yield from ((node.lineno, alias.name) for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
        assert node.level == 0, "relative imports are not used here"
        yield from ((node.lineno, f"{node.module}.{alias.name}") for alias in node.names)
