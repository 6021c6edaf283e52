"""Where a run's student lies, and the student loaded.

In: the directory that a run wrote, or a Hugging Face model directory. Out: the model directory, or
the model. Called by the commands that use a finished student.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from stages.train_student.student.model import DistilXLSTMForCausalLM


def model_directory(run: Path) -> Path:
    """The model directory that ``run`` is or holds. Raises ValueError if there is none."""
    for candidate in (run / "model", run):
        if (candidate / "config.json").is_file():
            return candidate
    if (run / "run.json").is_file():
        raise ValueError(
            f"{run}: its training has not finished, so there is no model yet. Finish it with "
            "`pipeline train-student … --resume`."
        )
    raise ValueError(f"{run}: neither a run of `pipeline train-student` nor a model directory")


def load_student_model(run: Path) -> "DistilXLSTMForCausalLM":
    """The student of ``run``, for inference. Raises ValueError if there is no whole one.

    Nothing in the directory is run, whoever wrote it.
    """
    path = model_directory(run)
    from stages.train_student.student.stored_student import load_stored_student

    return load_stored_student(path)


def load_student_tokenizer(run: Path, head_rows: int) -> Any:
    """The tokenizer beside the student of ``run``, which has ``head_rows`` embeddings.

    Raises ValueError if there is none, or one whose ids the student does not have.
    """
    path = model_directory(run)
    from stages.tokenizer_files import load_tokenizer

    tokenizer = load_tokenizer(path)
    largest = max(tokenizer.get_vocab().values(), default=0)
    if largest >= head_rows:
        raise ValueError(
            f"{path}: its tokenizer makes ids up to {largest}, but the student has {head_rows} "
            "embeddings. The two do not belong together: copy the whole directory again."
        )
    return tokenizer
