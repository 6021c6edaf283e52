"""A model that the harness asks: a student, or the teacher that it is compared with.

In: a run or model directory. Out: the model, its tokenizer, and a hash of all that its answers
depend on, by which an interrupted evaluation is resumed. Nothing in a directory is run.
"""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.students.student_files import (
    load_student_model,
    load_student_tokenizer,
    model_directory,
)


@dataclass(frozen=True, kw_only=True)
class EvaluatedModel:
    """A model on the host, with what reads its text."""

    model: Any
    tokenizer: Any
    sha256: str
    """Over config, weights and tokenizer."""


def load_evaluated_student(run: Path) -> EvaluatedModel:
    """The student of ``run``. Raises ValueError if it holds none."""
    from stages.model_files.tokenizer_files import TOKENIZER_FILES
    from stages.model_files.weight_files import weight_files

    directory = model_directory(run)
    # Not by its path: the harness would let the directory choose what code reads it.
    model: Any = load_student_model(directory)
    tokenizer = load_student_tokenizer(directory, model.config.head_rows)
    names = ["config.json", *weight_files(directory), *TOKENIZER_FILES]
    return EvaluatedModel(model=model, tokenizer=tokenizer, sha256=_sha256(directory, names))


def load_evaluated_teacher(directory: Path) -> EvaluatedModel:
    """The teacher in ``directory``, in the precision that it is stored in.

    Raises ValueError where stage one could not use it as a teacher either: what is compared with
    the student is what the student learned from.
    """
    from transformers import AutoModelForCausalLM

    from stages.cache_teacher.config import CacheTeacherConfig
    from stages.cache_teacher.teacher.teacher_files import resolve_teacher
    from stages.model_files.tokenizer_files import TOKENIZER_FILES
    from stages.model_files.weight_files import weight_files

    settings = CacheTeacherConfig(
        teacher=str(directory),
        teacher_dtype="float32",  # of no consequence: only the files are looked at
        attention="sdpa",
        sequence_length=2,
        top_k=1,
    )
    source = resolve_teacher(settings)
    try:
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            source.directory,
            dtype="auto",
            use_safetensors=True,
            trust_remote_code=False,
            local_files_only=True,
            output_loading_info=True,
        )
    except (ImportError, OSError, ValueError, KeyError) as error:
        raise ValueError(f"{directory}: the teacher cannot be loaded: {error}") from error
    model, info = loaded
    if info["missing_keys"]:
        missing = ", ".join(sorted(info["missing_keys"])[:5])
        raise ValueError(f"{directory}: weights are missing: {missing}. Copy the directory again.")
    names = ["config.json", *weight_files(source.directory), *TOKENIZER_FILES]
    return EvaluatedModel(
        model=model.eval(),
        tokenizer=source.tokenizer,
        sha256=_sha256(source.directory, names),
    )


def _sha256(directory: Path, names: Iterable[str]) -> str:
    """One hash over names and contents; files that are not there are none of the model."""
    lines = []
    for name in sorted(names):
        if (directory / name).is_file():
            with (directory / name).open("rb") as file:
                lines.append(f"{hashlib.file_digest(file, 'sha256').hexdigest()}  {name}\n")
    return hashlib.sha256("".join(lines).encode()).hexdigest()
