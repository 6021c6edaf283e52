"""The difference between a stored value and the value that the teacher gives now."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Difference:
    """One number of a position, as the cache holds it and as it was made now."""

    row: int
    position: int
    what: str
    stored: float
    made: float
    rounding: float
    """What the codec may have rounded it by."""
    is_averaged: bool = False
    """Whether the mean over positions counts, too."""

    @property
    def excess(self) -> float:
        """How far both are apart beyond that."""
        return max(0.0, abs(self.stored - self.made) - self.rounding)
