"""A teacher becomes an untrained student that holds all of its weights.

In: settings of stage two and a teacher, as a directory or a Hub id. Out: a model directory, and
which of its parameters are copies. Of the teacher's directory only data is read: weights, JSON and
the tokenizer.
"""

import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from cache_format.errors import Action, AdvisedError, NextStep
from stages.train_student.config import TrainStudentConfig

if TYPE_CHECKING:
    from stages.cache_teacher.teacher.teacher_files import TeacherSource
    from stages.train_student.students.student import Student

_LAYER = re.compile(r"\.\d+\.")


@dataclass(frozen=True, kw_only=True)
class ParameterRow:
    """Parameters of the same name in all layers."""

    name: str
    """``*`` stands for the layer's number."""
    is_new: bool
    count: int
    num_values: int
    dtype: str


def require_new(config: TrainStudentConfig, out: Path) -> None:
    """Raise ValueError where a student of ``config`` cannot be made at ``out``. Imports nothing
    heavy."""
    if not config.student.holds_teacher:
        raise ValueError(
            f"train_student.student.kind: a student of kind {config.student.kind!r} does not hold "
            'its teacher: expected "hybrid_xlstm". Choose such a recipe, or train a student from a '
            "cache."
        )
    for key in config.student.extra_packages:
        raise ValueError(
            f"train_student.student.{key}: {getattr(config.student, key)!r} is a way to train, of "
            'which an untrained student has nothing. Set it to "new" here; a training that begins '
            "with the student may set it as it likes."
        )
    if os.path.lexists(out):
        raise AdvisedError(
            f"{out}: is there already. Nothing was changed.",
            NextStep("Choose a new directory, or move this one away.", Action.CHOOSE_DIRECTORY),
        )


def convert_teacher(config: TrainStudentConfig, teacher: str, out: Path) -> list[ParameterRow]:
    """Publish the untrained student of ``teacher`` at ``out``; returns its parameters.

    New weights are a function of ``config.seed``. Raises ValueError for a teacher of a family that
    no such student is made from.
    """
    from stages.cache_teacher.config import CacheTeacherConfig
    from stages.cache_teacher.teacher.teacher_files import resolve_teacher
    from stages.train_student.export.publish_untrained import publish_untrained
    from stages.train_student.students.registry import student_kind

    require_new(config, out)
    source = resolve_teacher(
        CacheTeacherConfig(
            teacher=teacher, teacher_dtype="float32", attention="sdpa", sequence_length=2, top_k=1
        )
    )
    model = _untrained(config, source)
    rows = parameter_rows(model, student_kind(config.student.kind).mixer_parameters(model))
    with TemporaryDirectory() as saved:
        source.tokenizer.save_pretrained(saved)
        publish_untrained(model, config, source.directory, Path(saved), out)
    return rows


def _untrained(config: TrainStudentConfig, source: "TeacherSource") -> Any:
    from stages.train_student.new_student import teacher_weights
    from stages.train_student.students.registry import student_kind
    from stages.train_student.students.student import TeacherParts

    teacher = source.spec
    parts = TeacherParts(
        hidden_size=teacher.hidden_size,
        vocab_size=teacher.vocab_size,
        head_rows=teacher.head_rows,
        eos_token_id=teacher.eos_token_id,
        embedding=None,
        head=None,
        weights=teacher_weights(source.directory),
    )
    model = student_kind(config.student.kind).build(config.student, parts, config.seed)
    model.config.teacher = {
        "source": teacher.source,
        "revision": teacher.revision,
        "weights_sha256": teacher.weights_sha256,
        "tokenizer_sha256": teacher.tokenizer_sha256,
    }
    return model


def parameter_rows(model: "Student", new: Iterable[str]) -> list[ParameterRow]:
    """The parameters of ``model``, those of all layers together, in the order of their modules."""
    new = set(new)
    rows: dict[str, ParameterRow] = {}
    for name, parameter in model.named_parameters():
        pattern = _LAYER.sub(".*.", name)
        before = rows.get(pattern)
        rows[pattern] = ParameterRow(
            name=pattern,
            is_new=name in new,
            count=(before.count if before else 0) + 1,
            num_values=(before.num_values if before else 0) + parameter.numel(),
            dtype=str(parameter.dtype).removeprefix("torch."),
        )
    return list(rows.values())


def conversion_text(rows: list[ParameterRow]) -> str:
    """``rows`` as a table, copies first."""
    lines = []
    for is_new, title in ((False, "copied from the teacher"), (True, "new")):
        chosen = [row for row in rows if row.is_new is is_new]
        total = sum(row.num_values for row in chosen)
        lines.append(_line(title, sum(row.count for row in chosen), total, ""))
        lines += [_line(f"  {r.name}", r.count, r.num_values, r.dtype) for r in chosen]
    return "\n".join([_line("", "tensors", "values", ""), *lines])


def _line(name: str, count: int | str, num_values: int | str, dtype: str) -> str:
    values = num_values if isinstance(num_values, str) else f"{num_values:,}"
    return f"{name:48}{count:>8}{values:>16}  {dtype}".rstrip()
