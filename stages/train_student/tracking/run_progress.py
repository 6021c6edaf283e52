"""What a run says while it goes on. Made by ``run``, shown by the command line."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

Event = Literal["step", "validation", "checkpoint", "message", "warning"]


@dataclass(frozen=True, kw_only=True)
class TrainProgress:
    """One report: what happened, where the run stands, and the newest figures."""

    event: Event
    step: int
    num_steps: int
    tokens_done: int
    tokens_total: int
    metrics: dict[str, float] = field(default_factory=dict)
    message: str = ""
    """What is said; of "checkpoint", its path."""


Report = Callable[[TrainProgress], None]
