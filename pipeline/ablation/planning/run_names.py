"""Names of runs: directories that a person can read, and that stay when the sweep grows.

``VARIANT/seed=N``, with a grid ``VARIANT/KEY=VALUE,KEY=VALUE/seed=N``. What ``pipeline report``
makes of them: runs of one directory that differ in their seed are one line.
"""

import re
from collections.abc import Mapping
from dataclasses import fields

from stages.train_student.config import TrainStudentConfig

_RUN_KEYS = {field.name for field in fields(TrainStudentConfig)}
_NOT_IN_NAMES = re.compile(r"[^A-Za-z0-9._+-]+")
_LONGEST = 200  # of 255 bytes; a suffix of ours must fit, too


def point_name(variant: str, grid: Mapping[str, object]) -> str:
    """Of a variant at a point of the grid. Raises ValueError where no directory can be so named."""
    if not grid:
        return variant
    name = ",".join(f"{_short(key)}={_value(value)}" for key, value in grid.items())
    if len(name) > _LONGEST:
        raise ValueError(
            f"{variant}: the name of a point of the grid would be {len(name)} characters long: "
            f"{name[:60]}…. Write such settings as variants."
        )
    return f"{variant}/{name}"


def run_name(point: str, seed: int) -> str:
    """Of one run."""
    return f"{point}/seed={seed}"


def _short(key: str) -> str:
    """The last part of a key, where no other table of stage two has it."""
    short = key.rpartition(".")[2]
    is_unique = key.rpartition(".")[0] == "train_student" or short not in _RUN_KEYS
    return _NOT_IN_NAMES.sub("-", short if is_unique else key)


def _value(value: object) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, list):
        return "+".join(map(_value, value)) or "empty"
    return _NOT_IN_NAMES.sub("-", str(value)) or "empty"
