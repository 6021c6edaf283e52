"""The architecture: which package may import which, read from the source."""

import ast
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

import pytest

_ROOT = Path(__file__).parents[1]
_OURS = ("pipeline", "stages", "cache_format")
_MAY_IMPORT = {
    "pipeline": {"pipeline", "stages", "cache_format"},
    "stages": {"stages", "cache_format"},
    "cache_format": {"cache_format"},
}


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
    for package in _OURS:
        for path in sorted((_ROOT / package).rglob("*.py")):
            importer = ".".join(path.relative_to(_ROOT).with_suffix("").parts)
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                for line, imported in _named(node):
                    yield Import(f"{path.relative_to(_ROOT)}:{line}", importer, imported)


def _named(node: ast.AST) -> Iterator[tuple[int, str]]:
    if isinstance(node, ast.Import):
        yield from ((node.lineno, alias.name) for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
        assert node.level == 0, "relative imports are not used here"
        yield from ((node.lineno, f"{node.module}.{alias.name}") for alias in node.names)


def _is_within(module: str, package: str) -> bool:
    return module == package or module.startswith(f"{package}.")


def test_every_package_is_read() -> None:
    assert {found.importer.partition(".")[0] for found in imports()} == set(_OURS)


@pytest.mark.parametrize("package", _OURS)
def test_arrows_point_down(package: str) -> None:
    upwards = [
        found
        for found in imports()
        if _is_within(found.importer, package)
        and (top := found.imported.partition(".")[0]) in (*_OURS, "tests", "benchmarks")
        and top not in _MAY_IMPORT[package]
    ]
    assert upwards == []


def test_stages_do_not_know_each_other() -> None:
    one, two = "stages.cache_teacher", "stages.train_student"
    crossing = [
        found
        for found in imports()
        if (_is_within(found.importer, one) and _is_within(found.imported, two))
        or (_is_within(found.importer, two) and _is_within(found.imported, one))
    ]
    assert crossing == []


@pytest.mark.parametrize(
    ("stage", "layers"),
    [
        ("cache_teacher", ["corpus", "targets", "teacher", "engine"]),
        ("train_student", ["student", "batches", "objective", "training"]),
    ],
)
def test_a_stage_is_in_layers(stage: str, layers: list[str]) -> None:
    upwards = [
        found
        for number, layer in enumerate(layers)
        for found in imports()
        if _is_within(found.importer, f"stages.{stage}.{layer}")
        and _is_within(found.imported, f"stages.{stage}")
        and found.imported.split(".")[2] not in (*layers[: number + 1], "config")
    ]
    assert upwards == []


def test_cache_format_needs_little() -> None:
    allowed = sys.stdlib_module_names | {"cache_format", "numpy", "pyarrow", "fsspec", "zstandard"}
    foreign = [
        found
        for found in imports()
        if _is_within(found.importer, "cache_format")
        and found.imported.partition(".")[0] not in allowed
    ]
    assert foreign == []


def test_only_the_command_line_knows_click() -> None:
    users = [found for found in imports() if _is_within(found.imported, "click")]
    assert users
    assert [found for found in users if not _is_within(found.importer, "pipeline")] == []
