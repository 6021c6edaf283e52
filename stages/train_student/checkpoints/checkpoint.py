"""Checkpoints: everything a run needs to resume as if it had never stopped.

``step-0000500/tensors.safetensors`` holds the trained weights and AdamW's moments; ``state.json``,
which is sealed, all else and the SHA-256 of the tensors. A checkpoint is published by rename: it is
whole or absent. It holds whole tensors, so any number of processes can go on from it. Neither the
loader nor the dropout has a state: what they draw is a function of the step.
"""

import errno
import hashlib
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from itertools import chain, count
from pathlib import Path
from typing import Any, get_type_hints

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from cache_format.errors import UnsupportedFormatError
from cache_format.metadata import sealed_json
from cache_format.storage.atomic import (
    open_regular,
    publish_directory,
    remove_directory,
    remove_leftovers,
)
from stages.train_student.checkpoints.extension import Extension
from stages.train_student.config import TrainStudentConfig
from stages.train_student.run_files import parse_run_file, read_run_file, run_file_bytes
from stages.train_student.students.registry import settings_class
from stages.train_student.tracking.metrics import MetricsMark

STATE_FILE = "state.json"
_TENSORS_FILE = "tensors.safetensors"
_NOT_THERE = (FileNotFoundError, NotADirectoryError, IsADirectoryError)
_NAME = re.compile(r"step-(\d{7,})")


@dataclass(frozen=True, kw_only=True)
class CheckpointState:
    """What ``state.json`` says."""

    step: int
    """Finished optimizer steps."""
    tensors_sha256: str
    """Hash of the file of tensors; filled in when it is written."""
    identity: dict[str, Any]
    """What the run is that it belongs to: cache, teacher and settings."""
    extensions: tuple[Extension, ...]
    """Those of the run until ``step``."""
    config: dict[str, Any]
    """All settings, also those that may change while the run goes on."""
    scaler: dict[str, Any]
    """The gradient scaler's state; empty where it does nothing."""
    validation: dict[str, float]
    """The last validation's metrics, those that are finite."""
    validation_is_due: bool
    """Whether the validation of ``step`` was not finished; a resumed run begins with it."""
    metrics: MetricsMark
    """How far ``metrics.jsonl`` went."""
    origin_sha256: str | None = None
    """As in the run's record."""


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A loaded checkpoint."""

    path: Path
    state: CheckpointState
    tensors: dict[str, Tensor]

    @property
    def step(self) -> int:
        """Finished optimizer steps."""
        return self.state.step


@dataclass(frozen=True)
class Problem:
    """A checkpoint that is not whole, and why."""

    path: Path
    reason: str
    """A sentence that names the file."""


class ForeignCheckpointError(ValueError):
    """A checkpoint is whole, but of another run."""


def save(directory: Path, state: CheckpointState, tensors: dict[str, Tensor], keep: int) -> Path:
    """Publish a checkpoint of ``state.step`` and delete all of its run but the newest ``keep``.

    What is not of this run stays: the directory may be a link that others use, too. One of that
    step that is there already stays: a run comes to the same step in the same state.
    """
    target = directory / f"step-{state.step:07d}"
    if target.exists():
        return target
    directory.mkdir(parents=True, exist_ok=True)
    with publish_directory(target) as temporary:
        save_file(tensors, temporary / _TENSORS_FILE)
        digest = _sha256(temporary / _TENSORS_FILE)
        data = run_file_bytes(replace(state, tensors_sha256=digest))
        (temporary / STATE_FILE).write_bytes(data)
    own = [path for path in newest_first(directory) if _is_of_run(path, state.identity)]
    for path in own[keep:]:
        remove_directory(path)
    remove_leftovers(directory)
    return target


def _is_of_run(path: Path, identity: Mapping[str, Any]) -> bool:
    """Whether a checkpoint says that it is of the run with this identity, as far as it knows it."""
    try:
        state = parse_state(read_run_file(path / STATE_FILE), path / STATE_FILE)
    except (OSError, ValueError, UnsupportedFormatError):
        return False
    ours = sealed_json.to_plain(identity)
    return all(ours.get(name) == value for name, value in state.identity.items())


def load_newest(
    directory: Path, check: Callable[[Checkpoint], None] = lambda _: None
) -> tuple[Checkpoint | None, list[Problem]]:
    """The newest whole checkpoint, and what is wrong with each newer one.

    ``check`` raises ValueError where what a checkpoint holds is not usable. Raises OSError for one
    that cannot be read, as it may be whole, unless it is a link to itself; ForeignCheckpointError
    for one of another run; and UnsupportedFormatError for one that another version wrote.
    """
    problems: list[Problem] = []
    for path in newest_first(directory):
        try:
            checkpoint = load(path)
            check(checkpoint)
            return checkpoint, problems
        except ForeignCheckpointError:
            raise
        except UnsupportedFormatError as error:  # whole, as far as this version can know
            raise UnsupportedFormatError(
                f"{error} To resume the run without it, move {path} out of this directory."
            ) from error
        except OSError as error:
            if not isinstance(error, _NOT_THERE) and error.errno != errno.ELOOP:
                raise
            problems.append(Problem(path, f"{error.filename}: {error.strerror}."))
        except ValueError as error:
            reason = str(error).strip()
            problems.append(Problem(path, reason if str(path) in reason else f"{path}: {reason}"))
    return None, problems


def newest(directory: Path) -> Path | None:
    """Where the newest checkpoint lies, whole or not."""
    return next(iter(newest_first(directory)), None)


def newest_first(directory: Path) -> list[Path]:
    """All checkpoints of ``directory``, whole or not."""
    if not directory.is_dir():
        return []
    found = [path for path in directory.iterdir() if _NAME.fullmatch(path.name)]
    return sorted(found, key=_step_of, reverse=True)


def set_aside(problems: Sequence[Problem]) -> list[str]:
    """Rename what is not whole, so that it is neither counted nor in the way; says so of each."""
    messages = []
    for problem in problems:
        aside = _free_name(f"{problem.path}.damaged")
        problem.path.rename(aside)
        messages.append(f"{problem.reason} It is skipped, and was renamed to {aside.name}.")
    return messages


def _free_name(name: str) -> Path:
    """``name``, or with the first number that makes it the name of nothing."""
    numbered = (Path(f"{name}-{number}") for number in count(2))
    return next(path for path in chain([Path(name)], numbered) if not os.path.lexists(path))


def load(path: Path) -> Checkpoint:
    """The checkpoint at ``path``. Raises ValueError if it is not whole, OSError if it is not read.

    A checkpoint is not whole either where its step is not that of its name.
    """
    state = parse_state(read_run_file(path / STATE_FILE), path / STATE_FILE)
    if state.step != _step_of(path):
        raise ValueError(f"{path}: holds step {state.step}: it was renamed or copied.")
    file = path / _TENSORS_FILE
    if (found := _sha256(file)) != state.tensors_sha256:
        raise ValueError(
            f"{file}: corrupt: expected SHA-256 {state.tensors_sha256[:12]}…, found {found[:12]}…."
        )
    try:
        tensors = load_file(file)
    except (SafetensorError, KeyError, AttributeError) as error:  # an unknown type of number
        raise ValueError(f"{file}: corrupt: {error!r}.") from error
    return Checkpoint(path=path, state=state, tensors=tensors)


def config_of(checkpoint: Checkpoint) -> TrainStudentConfig:
    """The settings that it was trained with; those that came later have their defaults.

    Raises ValueError where this version does not allow them.
    """
    where, settings = f"{checkpoint.path / STATE_FILE}: config", dict(checkpoint.state.config)
    student = settings.pop("student", None)
    if not isinstance(student, dict):
        raise ValueError(f"{where}.student: expected an object, found {student!r}")
    try:
        kind = settings_class(student.get("kind"))
    except ValueError as error:
        raise ValueError(f"{where}.student: {error}") from error
    return TrainStudentConfig(
        student=kind(**_known(kind, student, f"{where}.student")),
        **_known(TrainStudentConfig, settings, where),
    )


def _known(kind: Any, settings: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Those of ``settings`` that are set and that ``kind`` knows, their types checked."""
    hints = get_type_hints(kind)
    return {
        field.name: sealed_json.from_plain(hints[field.name], value, f"{where}.{field.name}")
        for field in fields(kind)
        if (value := settings.get(field.name)) is not None
    }


def parse_state(data: bytes, path: Path) -> CheckpointState:
    """The state in the file ``path`` that holds ``data``. Raises ValueError if it is damaged."""
    return parse_run_file(CheckpointState, data, path, "")


def _step_of(path: Path) -> int:
    match = _NAME.fullmatch(path.name)
    if match is None:
        raise ValueError(f"{path}: no checkpoint: expected a name such as step-0000500.")
    return int(match[1])


def _sha256(path: Path) -> str:
    with open_regular(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
