"""Where the model of a run lies. Imports nothing heavy."""

import re
from pathlib import Path

from cache_format.errors import AdvisedError, NextStep
from cache_format.metadata.strict_json import read_object
from stages.next_steps import StageAction


def find_model_directory(place: Path) -> Path | None:
    """The Hugging Face model directory that ``place`` is or, as a run, holds; None without one."""
    for candidate in (place / "model", place):
        if (candidate / "config.json").is_file():
            return candidate
    return None


def newer_checkpoint_note(model: Path) -> str | None:
    """A sentence, if the newest checkpoint beside ``model`` is newer than the model itself.

    So it is in a run that was extended and has not finished.
    """
    steps = [
        int(path.name.removeprefix("step-"))
        for path in (model.parent / "checkpoints").glob("step-*")
        if re.fullmatch(r"step-[0-9]+", path.name, re.ASCII)
    ]
    if not steps:
        return None
    step = read_object(model / "config.json", "").get("num_steps")
    if not isinstance(step, int) or max(steps) <= step:
        return None
    return f"{model}: the run has a checkpoint of step {max(steps)}, which is newer than this model"


def has_checkpoint(place: Path) -> bool:
    """Whether ``place`` is a checkpoint or, as a run, holds one, whole or not."""
    return (place / "state.json").is_file() or any((place / "checkpoints").glob("step-*"))


def no_student(place: Path) -> AdvisedError:
    """The error where ``place`` holds no model, and no checkpoint if one would do."""
    if (place / "run.json").is_file():
        missing = "model" if has_checkpoint(place) else "checkpoint"
        return AdvisedError(
            f"{place}: training has not finished, and there is no {missing} yet.",
            NextStep("Resume it.", StageAction.RESUME),
        )
    return AdvisedError(f"{place}: neither a run of stage two nor a model directory")
