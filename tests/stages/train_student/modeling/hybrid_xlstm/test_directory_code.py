"""The modules that a directory carries import each other, and what is installed, alone."""

import ast
import sys

from stages.train_student.modeling.hybrid_xlstm.directory_code import AUTO_MAP, directory_code


def test_imports_of_the_carried_modules_are_carried_or_installed() -> None:
    files = directory_code()
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
    entry = {f"{module.partition('.')[0]}.py" for module in AUTO_MAP.values()}
    assert imported | entry == set(files)
