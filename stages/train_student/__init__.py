"""Stage two: an xLSTM student is trained from a cache alone.

``from stages.train_student import TrainStudentConfig, train_student``. The function, and torch
with it, is imported when it is first asked for.
"""

from typing import TYPE_CHECKING, Any

from stages.train_student.config import TrainStudentConfig
from stages.train_student.students.registry import student_settings

if TYPE_CHECKING:
    from stages.train_student.run import train_student

__all__ = ["TrainStudentConfig", "student_settings", "train_student"]


def __getattr__(name: str) -> Any:
    if name != "train_student":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from stages.train_student.run import train_student

    return train_student
