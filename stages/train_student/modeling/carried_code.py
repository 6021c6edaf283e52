"""The modules that a model directory carries, so that it loads where this project is not installed.

In: names of modules of this package. Out: the same modules as files that lie side by side. Here
they lie in folders and import each other by their full names; transformers copies a directory's
code to a package of its own making and follows imports such as ``from .stack import …`` alone.

This module is carried, too: a model that was loaded by the code in a directory is saved with it.
"""

import re
from collections.abc import Iterable
from pathlib import Path

_PACKAGE = "stages.train_student.modeling"
_IMPORT = re.compile(rf"^(\s*)from {re.escape(_PACKAGE)}\.([\w.]+) import ", re.MULTILINE)


def flat_name(module: str) -> str:
    """What ``module`` (``layers.mlstm``, ``distil_xlstm.stack``) is called among the others.

    A layer keeps its name; what is of one model has the model's name added.
    """
    folder, _, name = module.rpartition(".")
    return name if folder in ("", "layers") else f"{name}_{folder}"


def flattened(source: str) -> str:
    """``source`` of a module of this package, its imports of others by their flat names."""
    return _IMPORT.sub(
        lambda found: f"{found[1]}from .{flat_name(found[2])} import ",
        source,
    )


def carried_files(modules: Iterable[str]) -> dict[str, str]:
    """Source text by the name of the file, of ``modules`` (see ``flat_name``) and of this one."""
    here, is_flat = Path(__file__).parent, not __name__.startswith(_PACKAGE)
    files = {}
    for module in (*modules, "carried_code"):
        path = flat_name(module) if is_flat else module.replace(".", "/")
        source = (here / f"{path}.py").read_text(encoding="utf-8")
        files[f"{flat_name(module)}.py"] = flattened(source)
    return files
