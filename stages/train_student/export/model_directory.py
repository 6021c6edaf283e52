"""Where the model of a run lies. Imports nothing heavy."""

from pathlib import Path


def find_model_directory(place: Path) -> Path | None:
    """The Hugging Face model directory that ``place`` is or, as a run, holds; None without one."""
    for candidate in (place / "model", place):
        if (candidate / "config.json").is_file():
            return candidate
    return None


def has_checkpoint(place: Path) -> bool:
    """Whether ``place`` is a checkpoint or, as a run, holds one, whole or not."""
    return (place / "state.json").is_file() or any((place / "checkpoints").glob("step-*"))


def no_student(place: Path) -> str:
    """The message where ``place`` holds neither a model nor a checkpoint."""
    if (place / "run.json").is_file():
        return (
            f"{place}: its training has not finished, and there is no checkpoint yet. Resume "
            "it with `pipeline train-student … --resume`."
        )
    return f"{place}: neither a run of `pipeline train-student` nor a model directory"
