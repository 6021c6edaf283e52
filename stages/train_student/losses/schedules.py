"""How a weight or a temperature is annealed (Δ-distillation), and the learning rate.

Pure functions of the step, so that a resumed run needs nothing but its step.
Source: Distil-xLSTM, arXiv 2503.18565, section 3 (Δ-distillation).
"""

import math
from typing import NamedTuple

from stages.train_student.config import TrainStudentConfig


def annealed(start: float, end: float, k: int) -> float:
    """v_k = v_f + (v_0 − v_f) / (1 + ln(1 + k)): from ``start`` at k = 0 towards ``end``."""
    return end + (start - end) / (1.0 + math.log1p(k))


class LearningRates(NamedTuple):
    """The learning rates of one step."""

    base: float
    """Of all parameters that have no other."""
    mixer: float
    """Of what is new in a student that holds its teacher."""


def learning_rates(config: TrainStudentConfig, step: int, num_steps: int) -> LearningRates:
    """Those of optimizer step ``step`` (from 0) of ``num_steps``."""
    base = learning_rate(config, step, num_steps)
    if config.mixer_learning_rate is None:
        return LearningRates(base, base)
    peak = config.mixer_learning_rate
    return LearningRates(base, learning_rate(config, step, num_steps, peak=peak))


def learning_rate(
    config: TrainStudentConfig, step: int, num_steps: int, *, peak: float | None = None
) -> float:
    """Linear warm-up over ``warmup_ratio`` of the run to ``peak``, by default ``learning_rate``.

    After it the rate stays, or follows a cosine to ``min_learning_rate`` at the run's end.
    """
    peak = config.learning_rate if peak is None else peak
    warmup = math.ceil(config.warmup_ratio * num_steps)
    if step < warmup:
        return peak * (step + 1) / warmup
    if config.learning_rate_schedule == "constant":
        return peak
    progress = (step - warmup) / max(1, num_steps - warmup)
    end = config.min_learning_rate
    return end + (peak - end) * 0.5 * (1.0 + math.cos(math.pi * progress))


def start_of_epoch(config: TrainStudentConfig, start: float, end: float, epoch: int) -> float:
    """v_0 of ``epoch`` (from 0): the paper subtracts Δ, the authors' code multiplies by 1 − Δ."""
    if start < end:  # a value that is to rise: the config admits it under "subtract" alone
        return min(start + config.epoch_delta * epoch, end)
    if config.epoch_rule == "subtract":
        moved = start - config.epoch_delta * epoch
    else:
        moved = start * (1.0 - config.epoch_delta) ** epoch
    return max(moved, end)
