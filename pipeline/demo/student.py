"""A student that the demo has trained: where it lies, and what its validations said."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Student:
    """A finished run: its name and directory, its validations by step, and what it took."""

    name: str
    directory: Path
    validations: list[dict[str, float]]
    seconds: float

    @property
    def last(self) -> dict[str, float]:
        """The validation of the last step."""
        return self.validations[-1]
