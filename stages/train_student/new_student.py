"""Build a new student around the teacher's embedding and head in a cache."""

from cache_format.reader import Cache
from stages.train_student.checkpoints.teacher_identity import teacher_identity
from stages.train_student.config import TrainStudentConfig
from stages.train_student.data.teacher_files import teacher_embedding
from stages.train_student.students.registry import student_kind
from stages.train_student.students.student import Student, TeacherParts


def load_student(config: TrainStudentConfig, cache: Cache) -> Student:
    """A new student around the teacher's embedding and head, which lie in the cache.

    Its config names the cache and the teacher.
    """
    embedding, head = teacher_embedding(cache)
    teacher = cache.spec.teacher
    parts = TeacherParts(
        hidden_size=teacher.hidden_size,
        vocab_size=teacher.vocab_size,
        head_rows=teacher.head_rows,
        eos_token_id=teacher.eos_token_id,
        embedding=embedding,
        head=head,
    )
    student: Student = student_kind(config.student.kind).build(config.student, parts, config.seed)
    student.config.cache_id = cache.cache_id
    student.config.teacher = teacher_identity(cache)
    return student
