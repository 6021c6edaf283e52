"""Where a teacher is: a directory of this machine, or the Hub. Imports nothing heavy."""

from pathlib import Path

_LOCAL = ("/", "./", "../", "~")
_EXPECTED = "expected a directory with config.json and safetensors weights, or a Hub id"
_SAVE = "Load the model with transformers and save it with save_pretrained(DIRECTORY)."
_PICKLE = f"Pickled weights are never loaded. {_SAVE}"
_NEXT_STEPS = {
    ".gguf": "GGUF holds quantized weights: use the model that it was converted from.",
    ".bin": _PICKLE,
    ".pt": _PICKLE,
    ".pth": _PICKLE,
    ".ckpt": _PICKLE,
}


def local_directory(teacher: str) -> Path | None:
    """The directory that ``teacher`` names; None for a Hub id. Raises ValueError for neither."""
    if not teacher:
        raise ValueError(f"teacher: not set: {_EXPECTED}")
    path = Path(teacher).expanduser()
    if path.is_dir():
        return path.resolve()
    if path.exists():
        raise ValueError(f"teacher {teacher!r}: a file; {_EXPECTED}. {_next_step(path)}")
    is_id = teacher.count("/") <= 1
    if not is_id or teacher.startswith(_LOCAL) or path.suffix in (*_NEXT_STEPS, ".safetensors"):
        raise ValueError(f"teacher {teacher!r}: no such directory; {_EXPECTED}")
    return None


def _next_step(path: Path) -> str:
    if path.suffix in _NEXT_STEPS:
        return _NEXT_STEPS[path.suffix]
    if (path.parent / "config.json").is_file():
        return f"Did you mean its directory, {str(path.parent)!r}?"
    return _SAVE
