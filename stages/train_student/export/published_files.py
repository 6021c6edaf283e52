"""What may leave a model directory for the Hub: the files of a student, by their names, unchanged.

In: a model directory, which may come from a stranger. Out: the names to upload. Nothing else in it
is uploaded, and nothing that would run code under the name of whoever uploads it.
"""

import os
from pathlib import Path

from cache_format.metadata.strict_json import read_object
from stages.model_files.tokenizer_files import CONFIG, TOKENIZER_FILES
from stages.model_files.weight_files import INDEX, weight_files
from stages.train_student.modeling.distil_xlstm.directory_code import AUTO_MAP, CODE_FILE, SOURCE

_STEP = "Upload what stage two wrote, or export the student anew."
_OTHERS = ("config.json", "generation_config.json", INDEX, "README.md", CODE_FILE)


def published_files(directory: Path) -> list[str]:
    """The names of a student's files in ``directory``.

    Raises ValueError where one is a link, or names code other than this package's.
    """
    names = [*weight_files(directory), *_OTHERS, *TOKENIZER_FILES]
    found = [name for name in names if os.path.lexists(directory / name)]
    for name in found:
        if not (directory / name).is_file() or (directory / name).is_symlink():
            raise ValueError(
                f"{directory / name}: no ordinary file: what it leads to may lie anywhere. Copy "
                "the directory with `cp -rL`, look at what is in it, and upload the copy."
            )
    _refuse_foreign_code(directory, found)
    return found


def _refuse_foreign_code(directory: Path, names: list[str]) -> None:
    allowed = {"config.json": AUTO_MAP, CONFIG: None}
    for name, auto_map in allowed.items():
        if name in names:
            found = read_object(directory / name, _STEP).get("auto_map")
            if found not in (auto_map, None):
                raise ValueError(
                    f"{directory / name}: auto_map names foreign code: {found}. {_STEP}"
                )
    if CODE_FILE in names and (directory / CODE_FILE).read_bytes() != SOURCE.encode():
        raise ValueError(
            f"{directory / CODE_FILE}: not what this version of the package writes. {_STEP}"
        )
