"""How a weight or a temperature is annealed (Δ-distillation), and the learning rate.

Pure functions of the step, so that a resumed run needs nothing but its step.
Source: Distil-xLSTM, arXiv 2503.18565, section 3 (Δ-distillation).
"""

import math

from stages.train_student.config import TrainStudentConfig


def annealed(start: float, end: float, k: int) -> float:
    """v_k = v_f + (v_0 − v_f) / (1 + ln(1 + k)): from ``start`` at k = 0 towards ``end``."""
    return end + (start - end) / (1.0 + math.log1p(k))


def learning_rate(config: TrainStudentConfig, step: int, num_steps: int) -> float:
    """Linear warm-up over ``warmup_ratio`` of the run, then a cosine to 0 at its end."""
    warmup = math.ceil(config.warmup_ratio * num_steps)
    if step < warmup:
        return config.learning_rate * (step + 1) / warmup
    progress = (step - warmup) / max(1, num_steps - warmup)
    return config.learning_rate * 0.5 * (1.0 + math.cos(math.pi * progress))


def start_of_epoch(config: TrainStudentConfig, start: float, end: float, epoch: int) -> float:
    """v_0 of ``epoch`` (from 0): the paper subtracts Δ, the authors' code multiplies by 1 − Δ."""
    if start < end:  # a value that is to rise: the config admits it under "subtract" alone
        return min(start + config.epoch_delta * epoch, end)
    if config.epoch_rule == "subtract":
        moved = start - config.epoch_delta * epoch
    else:
        moved = start * (1.0 - config.epoch_delta) ** epoch
    return max(moved, end)
