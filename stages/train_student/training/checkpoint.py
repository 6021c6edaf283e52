"""Checkpoints: everything a run needs to go on as if it had never stopped.

``step-0000500/tensors.safetensors`` holds the trained weights and AdamW's moments; ``state.json``
the step, the gradient scaler, the settings, the cache's identity and the SHA-256 of the tensors. A
checkpoint is published by rename: it is whole or absent. It holds whole tensors, so any number of
processes can go on from it. Neither the loader nor the dropout has a state: what they draw is a
function of the step.
"""

import hashlib
import json
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from cache_format.atomic import publish_directory
from cache_format.strict_json import parse_object

_NAME = re.compile(r"step-(\d{7,})")


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A loaded checkpoint. ``step`` counts finished optimizer steps."""

    path: Path
    step: int
    tensors: dict[str, Tensor]
    state: dict[str, Any]


def save(
    directory: Path, step: int, tensors: dict[str, Tensor], state: dict[str, Any], keep: int
) -> Path:
    """Publish a checkpoint of ``step`` and delete all but the newest ``keep``.

    One of ``step`` that is there already stays: a run comes to the same step in the same state.
    """
    target = directory / f"step-{step:07d}"
    if target.exists():
        return target
    directory.mkdir(parents=True, exist_ok=True)
    with publish_directory(target) as temporary:
        save_file(tensors, temporary / "tensors.safetensors")
        state = state | {"step": step, "tensors_sha256": _sha256(temporary / "tensors.safetensors")}
        (temporary / "state.json").write_text(json.dumps(state, indent=1, sort_keys=True) + "\n")
    for path in _newest_first(directory)[keep:]:
        shutil.rmtree(path)
    return target


def load_newest(directory: Path) -> tuple[Checkpoint | None, list[str]]:
    """The newest whole checkpoint, and what was wrong with each newer one.

    What is damaged is renamed, so that it is neither counted nor in the way of one made again.
    Raises OSError for one that cannot be read: it may be whole.
    """
    problems: list[str] = []
    for path in _newest_first(directory):
        try:
            return load(path), problems
        except FileNotFoundError as error:
            problems.append(f"{path}: {error.filename} is missing; {_set_aside(path)}")
        except (ValueError, KeyError, SafetensorError) as error:
            problems.append(f"{path}: {error}; {_set_aside(path)}")
    return None, problems


def newest(directory: Path) -> Path | None:
    """Where the newest checkpoint lies, whole or not."""
    return next(iter(_newest_first(directory)), None)


def _set_aside(path: Path) -> str:
    aside = path.with_name(f"{path.name}.damaged")
    if aside.exists():
        shutil.rmtree(aside)
    path.rename(aside)
    return f"it is passed over, and now called {aside.name}"


def load(path: Path) -> Checkpoint:
    """The checkpoint at ``path``. Raises ValueError, KeyError or OSError if it is not whole."""
    state = parse_object((path / "state.json").read_bytes())
    file = path / "tensors.safetensors"
    if (found := _sha256(file)) != state["tensors_sha256"]:
        raise ValueError(f"{file.name} is corrupt (SHA-256 {found[:12]}…)")
    return Checkpoint(path=path, step=state["step"], tensors=load_file(file), state=state)


def _newest_first(directory: Path) -> list[Path]:
    if not directory.is_dir():
        return []
    found = [path for path in directory.iterdir() if _NAME.fullmatch(path.name)]
    return sorted(found, key=lambda path: int(path.name[5:]), reverse=True)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
