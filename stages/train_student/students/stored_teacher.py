"""Whether the ``teacher_config`` in a config.json, which anyone may have written, may be taken.

Only families of a list, and of their settings those that layers are built from, with numbers of
possible sizes.
"""

import math
from collections.abc import Callable, Mapping

from stages.train_student.modeling.hybrid_xlstm.teacher_family import (
    ACTIVATIONS,
    FAMILIES,
    FLAGS,
    ROPE_TYPES,
    SIZES,
)
from stages.train_student.students.stored_values import is_flag, is_size

_MOST_ROPE_FIELDS = 16
_NEEDED = ("model_type", "vocab_size", "hidden_size", "num_hidden_layers")


def is_teacher_config(value: object) -> bool:
    """A JSON object of the fields that ``teacher_fields`` keeps, each with a possible value."""
    return not teacher_config_problem(value)


def teacher_config_problem(value: object) -> str:
    """The first field that is impossible, with its value and what is allowed; empty if none is."""
    if not isinstance(value, dict):
        return f"expected an object, found {value!r:.200}"
    if missing := [key for key in _NEEDED if key not in value]:
        return f"{missing[0]} is missing"
    for key, one in value.items():
        is_possible, allowed = _FIELDS.get(key, _UNKNOWN)
        if not is_possible(one):
            return f"{key!s:.100}: expected {allowed}, found {one!r:.200}"
    return ""


def _is_one_of(values: object) -> Callable[[object], bool]:
    return lambda value: isinstance(value, str) and value in values  # type: ignore[operator]


def _is_share(value: object) -> bool:
    return _is_number(value) and 0.0 < float(value) < 1.0  # type: ignore[arg-type]


def _are_rope_parameters(values: object) -> bool:
    if not isinstance(values, dict) or len(values) > _MOST_ROPE_FIELDS:
        return False
    return values.get("rope_type", "default") in ROPE_TYPES and all(
        isinstance(key, str) and (key == "rope_type" or one is None or _is_number(one))
        for key, one in values.items()
    )


def _is_number(value: object) -> bool:
    if isinstance(value, bool):
        return True
    return isinstance(value, int | float) and math.isfinite(value) and abs(value) <= 1e12


_Field = tuple[Callable[[object], bool], str]

_FIELDS: Mapping[object, _Field] = {
    "model_type": (_is_one_of(FAMILIES), f"one of {', '.join(FAMILIES)}"),
    **dict.fromkeys(SIZES, (is_size, "a whole number from 1 to 2^31")),
    **dict.fromkeys(FLAGS, (is_flag, "true or false")),
    "hidden_act": (_is_one_of(ACTIVATIONS), f"one of {', '.join(ACTIVATIONS)}"),
    "rms_norm_eps": (_is_share, "a number between 0 and 1"),
    "rope_parameters": (
        _are_rope_parameters,
        f"at most {_MOST_ROPE_FIELDS} numbers and a rope_type, one of {', '.join(ROPE_TYPES)}",
    ),
    "sliding_window": (lambda value: value is None, "null"),
}
"""The fields that are taken: whether a value is possible, and which are."""
_UNKNOWN: _Field = (lambda _: False, "no such field")
