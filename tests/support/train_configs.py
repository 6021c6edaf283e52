"""Settings of stage two with those of the student beside them, as a test likes to write them."""

from dataclasses import fields
from typing import Any

from stages.train_student.config import TrainStudentConfig
from stages.train_student.modeling.distil_xlstm.settings import DistilXLSTMSettings

_STUDENT = {field.name for field in fields(DistilXLSTMSettings)}


def train_config(**settings: Any) -> TrainStudentConfig:
    """``TrainStudentConfig`` of ``settings``; those that a student has go into its own."""
    student = {key: value for key, value in settings.items() if key in _STUDENT}
    others = {key: value for key, value in settings.items() if key not in _STUDENT}
    return TrainStudentConfig(student=DistilXLSTMSettings(**student), **others)
