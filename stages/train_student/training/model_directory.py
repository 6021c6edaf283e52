"""Where the model of a run lies. Imports nothing heavy."""

from pathlib import Path


def find_model_directory(place: Path) -> Path | None:
    """The Hugging Face model directory that ``place`` is or, as a run, holds; None without one."""
    for candidate in (place / "model", place):
        if (candidate / "config.json").is_file():
            return candidate
    return None
