"""Where a teacher is: a directory of this machine, or the Hub. Imports nothing heavy."""

from pathlib import Path

_LOCAL = ("/", "./", "../", "~")
_EXPECTED = "expected a directory with config.json and safetensors weights, or a Hub id"
_OTHER_FORMATS = {
    ".gguf": "GGUF holds quantized weights for inference engines: name the model that it was "
    "converted from",
    ".bin": "a pickle is never loaded",
    ".pt": "a pickle is never loaded",
    ".pth": "a pickle is never loaded",
    ".ckpt": "a pickle is never loaded",
}


def local_directory(teacher: str) -> Path | None:
    """The directory that ``teacher`` names; None for a Hub id. Raises ValueError for neither."""
    if not teacher:
        raise ValueError(f"teacher: not set: {_EXPECTED}")
    path = Path(teacher).expanduser()
    if path.is_dir():
        return path.resolve()
    suffix = path.suffix.lower()
    if path.exists():
        raise ValueError(f"teacher {teacher!r}: a file; {_EXPECTED}. {_next_step(path, suffix)}")
    if teacher.startswith(_LOCAL) or suffix in (*_OTHER_FORMATS, ".safetensors"):
        raise ValueError(f"teacher {teacher!r}: no such directory; {_EXPECTED}")
    return None


def _next_step(path: Path, suffix: str) -> str:
    if (path.parent / "config.json").is_file() and suffix not in _OTHER_FORMATS:
        return f"Did you mean its directory, {str(path.parent)!r}?"
    reason = _OTHER_FORMATS.get(suffix)
    save = "load the model with transformers and save it with save_pretrained(DIRECTORY)"
    return f"{suffix}: {reason}, or {save}." if reason else f"{save.capitalize()}."
