"""The trained weights of one student, for another run to begin from.

In: a run's directory, a Hugging Face model directory or a checkpoint. Out: its trained weights,
once it is clear that they fit, and their hash, which is part of what the new run is.
"""

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from cache_format.errors import AdvisedError, NextStep
from cache_format.reader import Cache
from stages.next_steps import StageAction
from stages.train_student.checkpoints.checkpoint import config_of
from stages.train_student.checkpoints.saved_tensors import (
    restore_weights,
    trained_parameters,
    trained_weights,
    weights_sha256,
)
from stages.train_student.checkpoints.teacher_identity import require_same_teacher
from stages.train_student.config import TrainStudentConfig
from stages.train_student.export.model_directory import find_model_directory, newer_checkpoint_note
from stages.train_student.export.saved_student import find_checkpoint
from stages.train_student.export.stored_student import load_stored_student
from stages.train_student.students.registry import StudentSettings
from stages.train_student.students.student import Student


@dataclass(frozen=True, kw_only=True)
class InitialWeights:
    """Trained weights by the names of their parameters, and where they are from."""

    location: str
    """The model directory or the checkpoint, an absolute path."""
    sha256: str
    weights: dict[str, Tensor]
    notes: tuple[str, ...] = ()
    """What is to be known of the choice: newer checkpoints that are not used, and why."""


def load_initial_weights(place: Path, config: TrainStudentConfig, cache: Cache) -> InitialWeights:
    """The trained weights of the student at ``place``.

    Raises ValueError where there is none, or it is not built as ``config`` says or learned from
    another teacher than that of ``cache``.
    """
    source: Any  # has the settings that shape weights as attributes
    path, notes = find_model_directory(place), []
    if path is not None:
        if note := newer_checkpoint_note(path):
            notes.append(note)
        model = load_stored_student(path)
        kind, source, teacher = model.config.model_type, model.config, model.config.teacher
        weights = {name: p.detach() for name, p in trained_parameters(model).items()}
    else:
        checkpoint, notes = find_checkpoint(place)
        path, source = checkpoint.path, config_of(checkpoint).student
        kind = source.kind
        teacher = checkpoint.state.identity.get("teacher")
        weights = trained_weights(checkpoint.tensors)
    _require_same_architecture(path, kind, source, config.student)
    require_same_teacher(str(path), teacher or {}, cache)
    return InitialWeights(
        location=str(path.absolute()),
        sha256=weights_sha256(sorted(weights.items())),
        weights=weights,
        notes=tuple(notes),
    )


def fill_with_initial(
    model: Student, initial: InitialWeights, mixer_parameters: Collection[str]
) -> None:
    """Fill what ``model`` trains with ``initial``.

    A student that holds its teacher may train more than the other one did: what is a copy of the
    teacher's there, and so not among its trained weights, is one here as well. Raises ValueError
    where there is too little, or the other one has trained what is frozen here.
    """
    trained = trained_parameters(model).keys()
    copies = trained - mixer_parameters if mixer_parameters else set()
    if foreign := initial.weights.keys() - trained:
        raise AdvisedError(
            f"{initial.location}: {len(foreign)} of its trained weights, such as {min(foreign)}, "
            "are frozen in this recipe's student, or not part of it.",
            NextStep(
                "Train at least as much of the student as was trained there, or begin without "
                "initial weights.",
                StageAction.INITIAL_WEIGHTS,
            ),
        )
    try:
        restore_weights(model, initial.weights, may_keep=copies)
    except ValueError as error:
        raise ValueError(f"{initial.location}: {error}") from error


def _require_same_architecture(
    path: Path, kind: str, source: Any, settings: StudentSettings
) -> None:
    pairs: dict[str, tuple[Any, Any]] = {"kind": (kind, settings.kind)}
    if kind == settings.kind:
        for key in settings.weight_keys:
            theirs, ours = getattr(source, key), getattr(settings, key)
            # A config.json has lists where settings have tuples.
            pairs[key] = (tuple(theirs) if isinstance(theirs, list) else theirs, ours)
    differing = [
        f"{key} was {theirs!r} and is {ours!r}"
        for key, (theirs, ours) in pairs.items()
        if theirs != ours
    ]
    if differing:
        raise AdvisedError(
            f"{path}: its weights do not match this recipe: {'; '.join(differing)}.",
            NextStep(
                "Change [train_student.student] to match, or begin without initial weights.",
                StageAction.INITIAL_WEIGHTS,
            ),
        )
