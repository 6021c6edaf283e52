"""The precision that a run trains in, where the recipe leaves it open."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from stages.compute.half_precision import chosen_sentence, multiplies_fast, slow_sentence
from stages.train_student.losses.objective import PRECISIONS
from stages.train_student.trainer.run_directory import recorded_precision

_SETTING = "train_student.precision"
Precision = Literal["fp32", "bf16", "fp16"]


@dataclass(frozen=True)
class PrecisionChoice:
    """A precision, and a sentence where the device is no good at half precision."""

    precision: Precision
    sentence: str = ""


def choose_precision(
    asked: Literal["auto"] | Precision, out: Path, device: torch.device
) -> PrecisionChoice:
    """What ``asked`` stands for: the precision of the run in ``out``, if it can be gone on with, or
    the one for ``device``. One that is named stays."""
    own = _precision_for(device)
    precision = asked
    if precision == "auto":
        precision = recorded_precision(out) or own
        if precision == own == "fp32":
            return PrecisionChoice(precision, chosen_sentence(_SETTING, precision))
    if multiplies_fast(device, PRECISIONS[precision]):
        return PrecisionChoice(precision)
    return PrecisionChoice(precision, slow_sentence(_SETTING, precision, "fp32"))


def _precision_for(device: torch.device) -> Precision:
    if device.type == "cuda":
        return "fp16"
    return "bf16" if multiplies_fast(device, torch.bfloat16) else "fp32"
