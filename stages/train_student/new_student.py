"""Build a new student around what it takes over from the teacher of a cache."""

from pathlib import Path

from cache_format.metadata.strict_json import read_object
from cache_format.reader import Cache
from stages.train_student.checkpoints.teacher_identity import teacher_identity
from stages.train_student.config import TrainStudentConfig
from stages.train_student.data.mixture import CacheMixture, mixture_of
from stages.train_student.data.teacher_files import teacher_embedding
from stages.train_student.data.teacher_weights import require_teacher_weights, teacher_directory
from stages.train_student.students.registry import student_kind
from stages.train_student.students.student import (
    Student,
    TeacherParts,
    TeacherWeights,
    name_caches,
)


def load_student(
    config: TrainStudentConfig, cache: Cache | CacheMixture, teacher: Path | None = None
) -> Student:
    """A new student around the teacher's embedding and head or, if its kind asks, all its weights.

    They lie in the cache, or in each of a mixture; all weights may also lie in ``teacher``, a
    directory that has been compared with the cache (``checked_teacher``). The student's config
    names cache and teacher.

    Raises ValueError where weights are needed that are in neither.
    """
    mixture = mixture_of(cache)
    student: Student = student_kind(config.student.kind).build(
        config.student, _teacher_parts(config, mixture.reference, teacher), config.seed
    )
    name_caches(student.config, mixture.cache_id, mixture.cache_ids)
    student.config.teacher = teacher_identity(mixture.reference)
    return student


def _teacher_parts(config: TrainStudentConfig, cache: Cache, place: Path | None) -> TeacherParts:
    require_teacher_weights(config.student, cache, place)
    weights = embedding = head = None
    if config.student.holds_teacher:
        weights = teacher_weights(teacher_directory(cache, place))
    else:
        embedding, head = teacher_embedding(cache)
    teacher = cache.spec.teacher
    return TeacherParts(
        hidden_size=teacher.hidden_size,
        vocab_size=teacher.vocab_size,
        head_rows=teacher.head_rows,
        eos_token_id=teacher.eos_token_id,
        embedding=embedding,
        head=head,
        weights=weights,
    )


def teacher_weights(directory: Path) -> TeacherWeights:
    """The weights in the model directory ``directory``, which are read when a student is built."""
    step = "Put it back from where the teacher came."
    return TeacherWeights(config=read_object(directory / "config.json", step), directory=directory)
