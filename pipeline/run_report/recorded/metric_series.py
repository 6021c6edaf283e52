"""The curves in a run's ``metrics.jsonl``, of which strangers may have written every byte."""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from cache_format.storage.atomic import open_regular

_MOST_BYTES = 1 << 28
_MOST_NAMES = 5_000
_LONGEST_NAME = 100
_LARGEST, _SMALLEST = 1e100, 1e-100
"""Larger figures fit no axis; smaller ones are zero."""

Series = dict[int, float]
"""Values by step, in order of steps."""


@dataclass(frozen=True, kw_only=True)
class MetricSeries:
    """What a run has reported until now."""

    by_name: dict[str, Series] = field(default_factory=dict)
    num_unreadable: int = 0
    """Lines that are no JSON object with a step."""
    damaged: dict[str, int] = field(default_factory=dict)
    """Curves with a value that is no finite number, and the last step where they have one."""

    @property
    def last_step(self) -> int:
        """0 where nothing was reported."""
        return max((max(series) for series in self.by_name.values()), default=0)

    def of(self, name: str) -> Series:
        """The curve ``name``; empty where it was never reported."""
        return self.by_name.get(name, {})

    def last(self, name: str) -> float | None:
        """The newest value of ``name``; None where it is damaged: an older one is not its end."""
        series = self.of(name)
        if not series or self.damaged.get(name, -1) > next(reversed(series)):
            return None
        return next(reversed(series.values()))


def read_series(path: Path) -> MetricSeries:
    """The file ``path``; nothing where there is none. Raises OSError where it cannot be read.

    The last line may still be being written. Raises ValueError for a file of more than 256 MiB.
    """
    if not path.exists():
        return MetricSeries()
    with open_regular(path) as file:
        data = file.read(_MOST_BYTES + 1)
    if len(data) > _MOST_BYTES:
        raise ValueError(f"{path}: more than {_MOST_BYTES:,} bytes, which no run writes")
    found: dict[str, Series] = {}
    damaged: dict[str, int] = {}
    num_unreadable = 0
    for line in data[: data.rfind(b"\n") + 1].splitlines():
        row = _parsed(line)
        step = row.get("step")
        if type(step) is not int or not 0 <= step < 2**53:
            num_unreadable += 1
            continue
        for name, value in row.items():
            if (number := _number(value)) is None:
                if _is_known(name, damaged):
                    damaged[name] = max(step, damaged.get(name, 0))
            elif _is_known(name, found):
                found.setdefault(name, {})[step] = number
    ordered = {name: dict(sorted(series.items())) for name, series in found.items()}
    return MetricSeries(by_name=ordered, num_unreadable=num_unreadable, damaged=damaged)


def _is_known(name: str, found: Mapping[str, object]) -> bool:
    if name == "step" or len(name) > _LONGEST_NAME:
        return False
    return name in found or len(found) < _MOST_NAMES


def _parsed(line: bytes) -> dict[str, object]:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return {}
    return row if isinstance(row, dict) else {}


def _number(value: object) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    if isinstance(value, int) and abs(value) > _LARGEST:
        return None
    if not math.isfinite(value) or abs(value) > _LARGEST:
        return None
    return float(value) if abs(value) >= _SMALLEST else 0.0
