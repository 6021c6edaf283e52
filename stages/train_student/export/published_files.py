"""What may leave a model directory for the Hub: the files of a student, by their names, unchanged.

In: a model directory, which may come from a stranger. Out: the names to upload. Nothing else in it
is uploaded, and nothing that would run code under the name of whoever uploads it.
"""

import os
from pathlib import Path

from cache_format.metadata.strict_json import read_object
from stages.model_files.redirects import refuse_redirects
from stages.model_files.tokenizer_files import CONFIG, TOKENIZER_FILES, require_no_code
from stages.model_files.weight_files import INDEX, weight_files
from stages.train_student.export.checksums import CHECKSUMS, listed_files, require_unchanged
from stages.train_student.export.stored_student import read_config, stored_settings
from stages.train_student.students.registry import SETTINGS, student_kind
from stages.train_student.students.student import DirectoryCode

_STEP = "Upload what stage two wrote, or export the student anew."
_OTHERS = ("config.json", "generation_config.json", INDEX, "README.md", CHECKSUMS)
_UNSEALED = ("README.md", CHECKSUMS)
_WRITTEN_BY_TRANSFORMERS = {"architectures", "auto_map", "model_type", "transformers_version"}


def published_files(directory: Path) -> list[str]:
    """The names of a student's files in ``directory``.

    Raises ValueError where one is a link, or names code other than this package's.
    """
    code = _code_of(directory)
    names = [*weight_files(directory), *_OTHERS, *code.files, *TOKENIZER_FILES]
    found = [name for name in names if os.path.lexists(directory / name)]
    for name in found:
        if not (directory / name).is_file() or (directory / name).is_symlink():
            raise ValueError(
                f"{directory / name}: not a regular file, so its content may lie anywhere. Copy "
                "the directory with `cp -rL`, look at what is in it, and upload the copy."
            )
    _refuse_foreign_code(directory, found, code)
    require_unchanged(directory, [name for name in found if name not in _UNSEALED])
    return found


def is_complete(directory: Path) -> bool:
    """Whether all files are there that were published, as they were, with our own code."""
    try:
        found = published_files(directory)
        return listed_files(directory) <= set(found)
    except (ValueError, OSError):
        return False


def _code_of(directory: Path) -> DirectoryCode:
    """The code that a student of this kind has; none where there is no such kind."""
    path = directory / "config.json"
    kind = read_object(path, _STEP).get("model_type") if path.is_file() else None
    if kind not in list(SETTINGS):
        return DirectoryCode(auto_map={}, files={})
    return student_kind(str(kind)).directory_code


def _refuse_foreign_settings(path: Path) -> None:
    """Other keys than those of a student may name code or files to whoever loads the model."""
    kind, _ = read_config(path)
    fields = read_object(path, _STEP)
    architectures = [kind.model_class.__name__]
    if fields.get("architectures", architectures) != architectures:
        raise ValueError(f"{path}: architectures: expected {architectures}. {_STEP}")
    foreign = sorted(fields.keys() - stored_settings(kind).keys() - _WRITTEN_BY_TRANSFORMERS)
    if foreign:
        raise ValueError(
            f"{path}: {foreign[0]}: not a setting of a student. Delete it, or export the student "
            "anew."
        )


def _refuse_foreign_code(directory: Path, names: list[str], code: DirectoryCode) -> None:
    allowed = {"config.json": code.auto_map, CONFIG: None}
    for name, auto_map in allowed.items():
        if name in names:
            found = read_object(directory / name, _STEP).get("auto_map")
            if found not in (auto_map, None):
                raise ValueError(
                    f"{directory / name}: auto_map names foreign code: {found}. {_STEP}"
                )
    if "config.json" in names:
        _refuse_foreign_settings(directory / "config.json")
    refuse_redirects(directory / "generation_config.json")
    require_no_code(directory)
    for name, text in code.files.items():
        if name in names and (directory / name).read_bytes() != text.encode():
            raise ValueError(
                f"{directory / name}: not what this version of the package writes. {_STEP}"
            )
