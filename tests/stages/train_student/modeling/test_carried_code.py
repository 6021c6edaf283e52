"""A model's modules, laid side by side: their imports, and which are among them."""

import ast
import sys

import pytest

from stages.train_student.modeling.carried_code import flat_name, flattened
from stages.train_student.modeling.distil_xlstm.directory_code import AUTO_MAP, directory_code

PACKAGE = "stages.train_student.modeling"


@pytest.mark.parametrize(
    ("module", "name"),
    [
        ("layers.mlstm", "mlstm"),
        ("distil_xlstm.stack", "stack_distil_xlstm"),
        ("carried_code", "carried_code"),
    ],
)
def test_carried_modules_have_flat_names(module: str, name: str) -> None:
    assert flat_name(module) == name


def test_imports_of_the_package_become_relative_and_nothing_else_changes() -> None:
    source = f'''"""As in {PACKAGE}.layers."""
import math
from {PACKAGE}.layers.mlstm import CellState, mlstm
from {PACKAGE}.distil_xlstm.stack import (
    StackState,
)
from stages.train_student.config import TrainStudentConfig

def late():
    from {PACKAGE}.carried_code import flat_name
'''
    expected = f'''"""As in {PACKAGE}.layers."""
import math
from .mlstm import CellState, mlstm
from .stack_distil_xlstm import (
    StackState,
)
from stages.train_student.config import TrainStudentConfig

def late():
    from .carried_code import flat_name
'''
    assert flattened(source) == expected
    assert flattened(expected) == expected


def test_imports_of_the_carried_modules_are_carried_or_installed() -> None:
    files = directory_code()
    for module in AUTO_MAP.values():
        assert f"{module.partition('.')[0]}.py" in files
    installed = sys.stdlib_module_names | {"torch", "transformers"}
    imported = set()
    for source in files.values():
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.Import):
                assert {alias.name.partition(".")[0] for alias in node.names} <= installed
            elif isinstance(node, ast.ImportFrom) and node.level == 0:
                assert str(node.module).partition(".")[0] in installed
            elif isinstance(node, ast.ImportFrom):
                imported.add(f"{node.module}.py")
    entry = {"modeling_distil_xlstm.py"}
    assert imported | entry == set(files)
