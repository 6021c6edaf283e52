"""Training on after the last step: what is added to a run.

An extension leaves alone what was done before it. From its first step on, the learning rate is that
of a run which was planned with the new number of steps. All else depends on the step alone, and
goes on.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from cache_format.errors import AdvisedError, NextStep


@dataclass(frozen=True, kw_only=True)
class Extension:
    """From step ``from_step`` on, the run is one of ``to_step`` steps."""

    from_step: int
    to_step: int


def num_steps_at(step: int, planned: int, extensions: Sequence[Extension]) -> int:
    """The number of steps that the learning rate of ``step`` is fitted to.

    ``planned`` is the number that the run began with.
    """
    for extension in extensions:
        if step >= extension.from_step:
            planned = extension.to_step
    return planned


def extensions_before(step: int, extensions: Sequence[Extension]) -> tuple[Extension, ...]:
    """Those that a checkpoint of ``step`` has been trained under."""
    return tuple(extension for extension in extensions if extension.from_step < step)


def extended(
    extensions: Sequence[Extension], *, planned: int, step: int, to_step: int
) -> tuple[Extension, ...]:
    """``extensions`` of a run that has reached ``step`` and is to go on to ``to_step``.

    The same where it goes on to that anyway. Raises ValueError where it has been there already, or
    has further to go.
    """
    end = extensions[-1].to_step if extensions else planned
    if to_step == end and step < end:
        return tuple(extensions)
    if step == 0:
        raise AdvisedError(
            f"extension to step {to_step}: the run has no checkpoint to continue from.",
            NextStep(
                f"Set train_student.max_steps={to_step} instead.",
                settings={"train_student.max_steps": to_step},
            ),
        )
    if to_step <= step:
        raise ValueError(
            f"extension to step {to_step}: the run has reached step {step}. Choose a later step."
        )
    if to_step < end:
        raise ValueError(
            f"extension to step {to_step}: the run already continues to step {end}, and cannot be "
            "shortened. Choose a later step, or resume it without an extension."
        )
    return (*extensions_before(step, extensions), Extension(from_step=step, to_step=to_step))
