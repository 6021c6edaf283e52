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


def tiny_train_config(**changes: Any) -> TrainStudentConfig:
    settings: dict[str, Any] = {
        "num_blocks": 2,
        "slstm_at": (0,),
        "num_heads": 2,
        "qkv_block_size": 4,
        "learning_rate": 3e-3,
        "batch_size": 2,
        "gradient_accumulation_steps": 2,
        "num_train_epochs": 4,
        "max_steps": 9,
        "dropout": 0.1,  # so that the generator's state matters
        "precision": "fp32",
        "loss_chunk": 40,
        "compile": "off",
        "logging_steps": 1,
        "eval_steps": 4,
        "validation_rows": 6,
        "save_steps": 3,
    }
    return train_config(**(settings | changes))
