"""The end of a run: its student as a model directory, from weights spread over any processes."""

from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from stages.model_files.weight_files import weight_files
from stages.train_student.checkpoints.saved_tensors import (
    restore_weights,
    trained_parameters,
    whole_tensors,
)
from stages.train_student.config import TrainStudentConfig
from stages.train_student.data.mixture import CacheMixture
from stages.train_student.distributed.context import DistributedContext
from stages.train_student.export.publish_model import publish_model, published_step
from stages.train_student.export.published_files import is_complete
from stages.train_student.students.registry import student_kind
from stages.train_student.students.student import Student, name_origin


def publish_student(
    model: Student,
    mixture: CacheMixture,
    target: Path,
    context: DistributedContext,
    *,
    make_student: Callable[[], Student],
    config: TrainStudentConfig,
    step: int,
    origin_sha256: str | None,
    metrics: Mapping[str, float],
) -> tuple[str, ...]:
    """Publish ``model`` of ``step`` at ``target``, unless it is there; all processes call together.

    ``make_student`` builds the student as it began: what was not trained is taken from there.
    ``metrics`` are those of the last validation, ``origin_sha256`` is that of the run. Returns the
    keys of the teacher's ``tokenizer_config.json`` that were left out, because they name code or
    files elsewhere.
    """
    is_shared = context.num_ranks > 1
    trained = whole_tensors(trained_parameters(model), keep=is_shared and context.is_rank0)

    def publish() -> tuple[str, ...]:
        student = model
        if is_shared:
            student = make_student()
            restore_weights(student, trained)
        student = student_kind(config.student.kind).publishable(student)
        is_there = target.exists() and published_step(target) == step
        if is_there and is_complete(target) and _holds(target, student):
            return ()
        student.config.num_steps = step
        name_origin(student.config, origin_sha256)
        return publish_model(student, mixture, target, config=config, metrics=metrics)

    return context.run_on_rank0(publish)


def _holds(directory: Path, student: Student) -> bool:
    """Whether the weights in ``directory`` are those of ``student``: they may have been swapped."""
    expected = student.state_dict()
    found = set()
    try:
        for file in weight_files(directory):
            with safe_open(directory / file, framework="pt") as weights:
                for name in weights.keys():  # noqa: SIM118  (no mapping)
                    tensor = expected.get(name)
                    if tensor is None or not torch.equal(tensor.cpu(), weights.get_tensor(name)):
                        return False
                    found.add(name)
    except (SafetensorError, ValueError, OSError):
        return False
    return expected.keys() - found <= {"lm_head.weight"}  # which is the embedding where tied
