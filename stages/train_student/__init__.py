"""Stage two: an xLSTM student is trained from a cache alone, or from several.

``from stages.train_student import TrainStudentConfig, train_student``. ``mix`` makes of several
caches what ``train_student`` takes in the place of one. Both functions, and torch with one of them,
are imported when they are first asked for.
"""

from typing import TYPE_CHECKING, Any

from stages.train_student.config import TrainStudentConfig
from stages.train_student.students.registry import student_settings

if TYPE_CHECKING:
    from stages.train_student.data.mixture import mix
    from stages.train_student.run import train_student

__all__ = ["TrainStudentConfig", "mix", "student_settings", "train_student"]


def __getattr__(name: str) -> Any:
    if name == "mix":
        from stages.train_student.data.mixture import mix

        return mix
    if name == "train_student":
        from stages.train_student.run import train_student

        return train_student
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
