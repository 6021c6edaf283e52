"""Find the student of a run: its published model or, if there is none yet, a checkpoint."""

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from cache_format.reader import Cache
from stages.train_student.checkpoints.checkpoint import (
    STATE_FILE,
    Checkpoint,
    config_of,
    load,
    load_newest,
    newest,
)
from stages.train_student.checkpoints.recorded_caches import CACHES
from stages.train_student.checkpoints.saved_tensors import (
    require_alike,
    restore_weights,
    trained_parameters,
    trained_weights,
)
from stages.train_student.checkpoints.teacher_identity import require_same_teacher
from stages.train_student.config import TrainStudentConfig
from stages.train_student.export.model_directory import no_student
from stages.train_student.export.publish_model import publish_model
from stages.train_student.new_student import load_student
from stages.train_student.students.registry import student_kind
from stages.train_student.students.student import name_caches, name_origin

_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def find_checkpoint(place: Path) -> tuple[Checkpoint, list[str]]:
    """The checkpoint that ``place`` is or, as a run, holds: the newest one that is whole.

    With it, what is wrong with newer ones; nothing is renamed. Raises ValueError if there is none.
    """
    if (place / STATE_FILE).is_file():
        return load(place.resolve()), []
    directory = place / "checkpoints"
    if newest(directory) is None:
        raise no_student(place)
    found, problems = load_newest(directory)
    if found is None and newest(directory) not in [problem.path for problem in problems]:
        found, problems = load_newest(directory)  # a run that goes on has replaced them all
    messages = [f"{problem.reason} It is skipped." for problem in problems]
    if found is None:
        raise ValueError("\n".join([*messages, f"{directory}: no checkpoint is intact."]))
    return found, messages


def publish_checkpoint(checkpoint: Checkpoint, cache: Cache, target: Path) -> None:
    """The student of ``checkpoint`` as a model directory at ``target``.

    Embedding, head and tokenizer come from ``cache``, the one that the run learns from or another
    of the same teacher. Raises ValueError where it is of another one.
    """
    state = checkpoint.state
    require_same_teacher(str(checkpoint.path), state.identity.get("teacher", {}), cache)
    config, weights = config_of(checkpoint), trained_weights(checkpoint.tensors)
    _require_fit(checkpoint, config, weights, cache)
    student = load_student(config, cache)
    restore_weights(student, weights)
    student = student_kind(config.student.kind).publishable(student)
    caches = state.identity.get(CACHES)
    several = sorted(caches) if isinstance(caches, dict) else None
    name_caches(student.config, state.identity.get("cache_id"), several)
    student.config.num_steps = checkpoint.step
    name_origin(student.config, state.origin_sha256)
    publish_model(student, cache, target, config=config, metrics=state.validation)


def _require_fit(
    checkpoint: Checkpoint, config: TrainStudentConfig, weights: Mapping[str, Tensor], cache: Cache
) -> None:
    """Raise ValueError unless the student of ``config`` has these weights, before it is made.

    They have to be numbers.
    """
    if problem := student_kind(config.student.kind).blocks_differ(config.student, weights):
        raise ValueError(f"{checkpoint.path}: {problem}")
    with torch.device("meta"):
        expected = trained_parameters(load_student(config, cache))
    try:
        require_alike(expected, weights, dtypes=False)
    except ValueError as error:
        raise ValueError(f"{checkpoint.path}: {error}") from error
    for name, tensor in weights.items():
        if tensor.dtype not in _DTYPES:
            raise ValueError(
                f"{checkpoint.path}: {name}: is {str(tensor.dtype).removeprefix('torch.')}, "
                "expected float32, bfloat16 or float16. Use an older checkpoint of the run."
            )
        if not tensor.isfinite().all():
            raise ValueError(
                f"{checkpoint.path}: {name}: holds NaN or infinity, so the student can compute "
                "nothing. Use an older checkpoint of the run."
            )
