"""All weights of a cache's teacher: in the cache, or in a directory that is checked against it.

In: a recipe, an open cache and, where the cache holds no weights, the teacher's directory. Out: a
model directory. Imports nothing heavy, so that a missing teacher is refused at once.
"""

from pathlib import Path

from cache_format.errors import AdvisedError, NextStep
from cache_format.reader import Cache
from stages.model_files.file_hashes import weights_sha256
from stages.model_files.redirects import refuse_redirects
from stages.model_files.weight_files import INDEX, WHOLE, weight_files
from stages.next_steps import StageAction
from stages.train_student.students.registry import StudentSettings


def require_teacher_weights(student: StudentSettings, cache: Cache, teacher: Path | None) -> None:
    """Raise ValueError where ``student`` needs weights that neither place has, or none of them."""
    if not student.holds_teacher:
        if teacher is not None:
            raise ValueError(
                f"teacher {teacher}: a student of kind {student.kind!r} takes no more of its "
                "teacher than the cache holds. Leave the teacher out."
            )
        return
    if teacher is None and not holds_weights(cache):
        raise AdvisedError(
            f"{cache.path}: holds no weights of its teacher, of which a student of kind "
            f"{student.kind!r} takes over all.",
            NextStep(
                "Give the teacher's directory, or make a cache with "
                "cache_teacher.keep_teacher_weights=true.",
                StageAction.TEACHER_WEIGHTS,
            ),
        )


def holds_weights(cache: Cache) -> bool:
    """Whether ``cache`` holds more of its teacher than embedding and head."""
    return not {WHOLE, INDEX}.isdisjoint(cache.attachments())


def checked_teacher(directory: Path, cache: Cache) -> Path:
    """``directory``, whose weights are those of the teacher of ``cache``.

    Raises ValueError where they are not, or there are none.
    """
    if not (directory / "config.json").is_file() or not weight_files(directory):
        raise ValueError(
            f"teacher {directory}: expected a directory with config.json and safetensors weights. "
            "Save the model with transformers' save_pretrained and give that directory."
        )
    refuse_redirects(directory / "config.json")
    expected, found = cache.spec.teacher.weights_sha256, weights_sha256(directory)
    if found != expected:
        raise ValueError(
            f"teacher {directory}: not the one that {cache.path} was made with "
            f"({cache.spec.teacher.source}): expected weights_sha256 {expected}, found {found}. "
            "Give the directory of that teacher, with the config.json that it had."
        )
    return directory


def teacher_directory(cache: Cache, teacher: Path | None) -> Path:
    """Where all weights are: ``teacher``, which has been checked, or the directory in ``cache``."""
    return cache.teacher_directory() if teacher is None else teacher
