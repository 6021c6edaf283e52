"""A student that a run has left: its published model or, before there is one, a checkpoint."""

from pathlib import Path

from cache_format.reader import Cache
from stages.train_student.training.checkpoint import (
    STATE_FILE,
    Checkpoint,
    config_of,
    load,
    load_newest,
    newest,
)
from stages.train_student.training.export import publish_model
from stages.train_student.training.model_directory import no_student
from stages.train_student.training.new_student import load_student
from stages.train_student.training.saved_tensors import restore_weights, trained_weights
from stages.train_student.training.teacher_identity import require_same_teacher


def find_checkpoint(place: Path) -> tuple[Checkpoint, list[str]]:
    """The checkpoint that ``place`` is or, as a run, holds: the newest one that is whole.

    With it, what is wrong with newer ones; nothing is renamed. Raises ValueError if there is none.
    """
    if (place / STATE_FILE).is_file():
        return load(place.resolve()), []
    directory = place / "checkpoints"
    if newest(directory) is None:
        raise ValueError(no_student(place))
    found, problems = load_newest(directory)
    if found is None and newest(directory) not in [problem.path for problem in problems]:
        found, problems = load_newest(directory)  # a run that goes on has replaced them all
    messages = [f"{problem.reason} It is passed over." for problem in problems]
    if found is None:
        raise ValueError("\n".join([*messages, f"{directory}: no checkpoint is whole."]))
    return found, messages


def publish_checkpoint(checkpoint: Checkpoint, cache: Cache, target: Path) -> None:
    """The student of ``checkpoint`` as a model directory at ``target``.

    Embedding, head and tokenizer come from ``cache``, the one that the run learns from or another
    of the same teacher. Raises ValueError where it is of another one.
    """
    state = checkpoint.state
    require_same_teacher(str(checkpoint.path), state.identity.get("teacher", {}), cache)
    config = config_of(checkpoint)
    student = load_student(config, cache)
    restore_weights(student, trained_weights(checkpoint.tensors))
    student.config.cache_id = state.identity.get("cache_id")
    student.config.num_steps = checkpoint.step
    publish_model(student, cache, target, config=config, metrics=state.validation)
