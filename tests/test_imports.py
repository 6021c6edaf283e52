"""The architecture: which package may import which, read from the source."""

import re
import sys
from collections.abc import Iterator

import pytest

from tests.support import ROOT
from tests.support.import_graph import OURS, imports

_MAY_IMPORT = {
    "pipeline": {"pipeline", "stages", "cache_format"},
    "stages": {"stages", "cache_format"},
    "cache_format": {"cache_format"},
}


def _is_within(module: str, package: str) -> bool:
    return module == package or module.startswith(f"{package}.")


def test_imports_of_every_package_are_checked() -> None:
    assert {found.importer.partition(".")[0] for found in imports()} == set(OURS)


@pytest.mark.parametrize("package", OURS)
def test_packages_import_only_the_packages_below(package: str) -> None:
    upwards = [
        found
        for found in imports()
        if _is_within(found.importer, package)
        and (top := found.imported.partition(".")[0]) in (*OURS, "tests", "benchmarks")
        and top not in _MAY_IMPORT[package]
    ]
    assert upwards == []


def test_the_two_stages_do_not_import_each_other() -> None:
    one, two = "stages.cache_teacher", "stages.train_student"
    crossing = [
        found
        for found in imports()
        if (_is_within(found.importer, one) and _is_within(found.imported, two))
        or (_is_within(found.importer, two) and _is_within(found.imported, one))
    ]
    assert crossing == []


_CACHE_LAYERS = (
    "errors storage coding metadata tables codec threads shard shard_batches reader opening writer "
    "tools"
)
_STAGE_ONE_LAYERS = (
    "target_settings corpus_settings config worker_share corpus targets reporting teacher setup "
    "engine preflight plan run estimate"
)
_STAGE_TWO_LAYERS = (
    "modeling students config run_files data losses distributed tracking checkpoints new_student "
    "evaluation export merging trainer preflight run"
)
_COMMAND_LINE_LAYERS = (
    "recipes reporting runtime options diagnosis comparison judgement reports students "
    "student_comparison run_report ablation watch demo commands cli"
)


@pytest.mark.parametrize(
    ("package", "layers"),
    [
        ("cache_format", _CACHE_LAYERS),
        ("stages.cache_teacher", _STAGE_ONE_LAYERS),
        ("stages.train_student", _STAGE_TWO_LAYERS),
        ("pipeline", _COMMAND_LINE_LAYERS),
    ],
)
def test_a_layer_imports_only_the_layers_before_it(package: str, layers: str) -> None:
    order = {layer: number for number, layer in enumerate(layers.split())}
    depth = package.count(".") + 1
    upwards = []
    for found in imports():
        importer, imported = found.importer.split("."), found.imported.split(".")
        is_inside = _is_within(found.importer, package) and _is_within(found.imported, package)
        if not is_inside or importer[depth] in ("__init__", "__main__"):
            continue
        if order[imported[depth]] > order[importer[depth]]:
            upwards.append(found)
    assert upwards == []


def test_there_are_no_import_cycles() -> None:
    """Imports in functions and for types count, too."""
    modules = {found.importer.removesuffix(".__init__") for found in imports()}
    graph: dict[str, set[str]] = {module: set() for module in modules}
    for found in imports():
        target = found.imported if found.imported in modules else found.imported.rpartition(".")[0]
        if target in modules:
            graph[found.importer.removesuffix(".__init__")].add(target)
    for cycle in strongly_connected(graph):
        assert len(cycle) == 1, sorted(cycle)


def strongly_connected(graph: dict[str, set[str]]) -> Iterator[set[str]]:
    """The modules that each module both reaches and is reached from."""

    def reached(start: str) -> set[str]:
        seen: set[str] = set()
        todo = [start]
        while todo:
            for target in graph[todo.pop()] - seen:
                seen.add(target)
                todo.append(target)
        return seen

    reach = {module: reached(module) for module in graph}
    for module in graph:
        yield {module} | {other for other in reach[module] if module in reach[other]}


def test_folders_have_at_most_15_modules_and_none_shadows_the_standard_library() -> None:
    for package in OURS:
        for folder in {path.parent for path in (ROOT / package).rglob("*.py")}:
            modules = [path for path in folder.glob("*.py") if path.name != "__init__.py"]
            assert len(modules) <= 15, folder
            named = {path.stem for path in modules} & sys.stdlib_module_names
            assert not named, (folder, named)


def test_cache_format_imports_only_numpy_pyarrow_fsspec_and_zstandard() -> None:
    allowed = sys.stdlib_module_names | {"cache_format", "numpy", "pyarrow", "fsspec", "zstandard"}
    foreign = [
        found
        for found in imports()
        if _is_within(found.importer, "cache_format")
        and found.imported.partition(".")[0] not in allowed
    ]
    assert foreign == []


def test_models_need_torch_transformers_and_xlstm_alone() -> None:
    """They are published with their code, to where this project is not installed."""
    package = "stages.train_student.modeling"
    allowed = sys.stdlib_module_names | {"torch", "transformers", "xlstm", "triton"}
    foreign = [
        found
        for found in imports()
        if _is_within(found.importer, package)
        and not _is_within(found.imported, package)
        and found.imported.partition(".")[0] not in allowed
    ]
    assert foreign == []


def test_only_its_own_kind_imports_the_code_of_a_student() -> None:
    """All else asks the kind, so that a second one needs no place but its own and the registry."""
    models, kinds = "stages.train_student.modeling", "stages.train_student.students"
    users = {
        found.importer
        for found in imports()
        if _is_within(found.imported, models) and not _is_within(found.importer, models)
    }
    own = {"registry", "distil_xlstm", "hybrid_xlstm", "low_rank", "stored_teacher"}
    assert users == {f"{kinds}.{name}" for name in own}


def test_only_the_command_line_imports_click() -> None:
    users = [found for found in imports() if _is_within(found.imported, "click")]
    assert users
    assert [found for found in users if not _is_within(found.importer, "pipeline")] == []


def test_no_test_module_is_imported() -> None:
    """What tests share lies in tests/support/."""
    folders = (ROOT / "tests", ROOT / "benchmarks")
    sources = [path for folder in folders for path in folder.rglob("*.py")]
    pattern = re.compile(r"^\s*(from|import) +tests\.\S*\btest_|^\s*from tests\S* import test_")
    importing = [
        f"{path.relative_to(ROOT)}: {line}"
        for path in sources
        for line in path.read_text().splitlines()
        if pattern.search(line)
    ]
    assert importing == []
