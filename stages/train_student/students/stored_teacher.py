"""Whether the ``teacher_config`` in a config.json, which anyone may have written, may be taken.

Only families of a list, and of their settings those that layers are built from, with numbers of
possible sizes.
"""

import math

from stages.train_student.modeling.hybrid_xlstm.teacher_family import (
    ACTIVATIONS,
    FAMILIES,
    FLAGS,
    ROPE_TYPES,
    SIZES,
)
from stages.train_student.students.stored_values import is_flag, is_size

_MOST_ROPE_FIELDS = 16


def is_teacher_config(value: object) -> bool:
    """A JSON object of the fields that ``teacher_fields`` keeps, each with a possible value."""
    return (
        isinstance(value, dict)
        and value.keys() >= {"model_type", "vocab_size", "hidden_size", "num_hidden_layers"}
        and all(isinstance(key, str) and _is_possible(key, one) for key, one in value.items())
    )


def _is_possible(key: str, value: object) -> bool:
    if key == "model_type":
        return isinstance(value, str) and value in FAMILIES
    if key in SIZES:
        return is_size(value)
    if key in FLAGS:
        return is_flag(value)
    if key == "hidden_act":
        return isinstance(value, str) and value in ACTIVATIONS
    if key == "rms_norm_eps":
        return _is_number(value) and 0.0 < float(value) < 1.0  # type: ignore[arg-type]
    if key == "rope_parameters":
        return isinstance(value, dict) and _are_rope_parameters(value)
    return key == "sliding_window" and value is None


def _are_rope_parameters(values: dict[object, object]) -> bool:
    if len(values) > _MOST_ROPE_FIELDS or values.get("rope_type", "default") not in ROPE_TYPES:
        return False
    return all(
        isinstance(key, str) and (key == "rope_type" or one is None or _is_number(one))
        for key, one in values.items()
    )


def _is_number(value: object) -> bool:
    if isinstance(value, bool):
        return True
    return isinstance(value, int | float) and math.isfinite(value) and abs(value) <= 1e12
