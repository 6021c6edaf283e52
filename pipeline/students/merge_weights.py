"""The weights of a merge, as they are typed: ``STUDENT=WEIGHT``, or ``STUDENT`` for a search.

In: the words. Out: students and their weights, which are not negative and add up to 1. Imports
nothing heavy.
"""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

_ROUNDING = 1e-6  # what a sum of typed decimals may be off by
_NUMBER = re.compile(r"[0-9]*\.?[0-9]+(e[+-]?[0-9]+)?|[0-9]+\.", re.ASCII | re.IGNORECASE)


@dataclass(frozen=True, kw_only=True)
class WeightedStudent:
    """A student to be merged."""

    place: Path
    """Its run or model directory."""
    weight: float | None
    """None where it is to be searched for."""

    @property
    def name(self) -> str:
        """The last part of its place that says something."""
        path = self.place.resolve()
        return path.parent.name if path.name == "model" else path.name


def parse_weighted(words: Sequence[str]) -> list[WeightedStudent]:
    """The students of ``words``. Raises ValueError where one is no directory or no weight."""
    found = [_parse(word) for word in words]
    if len(found) < 2:
        raise ValueError("one student alone cannot be merged: give at least two.")
    return found


def complete_weights(students: Sequence[WeightedStudent], *, normalize: bool) -> tuple[float, ...]:
    """Their weights, which are all given or all not; then they are equal.

    Raises ValueError where they do not add up to 1 and are not to be scaled.
    """
    given = [student.weight for student in students if student.weight is not None]
    if not given:
        return (1 / len(students),) * len(students)
    if len(given) < len(students):
        lacking = next(student.place for student in students if student.weight is None)
        raise ValueError(f"{lacking}: has no weight, but others have. Write {lacking}=WEIGHT.")
    total = math.fsum(given)
    if normalize and total > 0:
        return tuple(weight / total for weight in given)
    if abs(total - 1) > _ROUNDING:
        more = "" if total == 0 else " --normalize scales them so that they do."
        raise ValueError(f"the weights add up to {total:.6g}, expected 1.{more}")
    return tuple(given)


def _parse(word: str) -> WeightedStudent:
    place, equals, text = word.rpartition("=")
    if not equals:
        return WeightedStudent(place=_directory(word), weight=None)
    if _NUMBER.fullmatch(text) is None or not math.isfinite(float(text)):
        if Path(word).is_dir():  # a directory with "=" in its name
            return WeightedStudent(place=Path(word), weight=None)
        raise ValueError(f"{word!r}: {text!r} is no weight: expected a number that is not negative")
    return WeightedStudent(place=_directory(place), weight=float(text))


def _directory(text: str) -> Path:
    if not Path(text).is_dir():
        raise ValueError(
            f"{text!r} is no directory: expected a run or a model directory, such as run=0.5"
        )
    return Path(text)
