"""Where a student lies, and the student loaded.

In: a run's directory, a Hugging Face model directory or, where training has not finished, a
checkpoint. Out: a model directory, or the model.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from stages.train_student.students.student import Student


@dataclass(frozen=True, kw_only=True)
class StudentFiles:
    """A student as a model directory."""

    directory: Path
    """The model directory; of a checkpoint a temporary one."""
    source: Path
    """What the person would call it: the model directory, or the checkpoint."""
    step: int | None
    """Of a checkpoint its step."""


def model_directory(run: Path) -> Path:
    """The model directory that ``run`` is or holds. Raises ValueError if there is none."""
    from stages.train_student.export.model_directory import find_model_directory, no_student

    path = find_model_directory(run)
    if path is None:
        raise no_student(run)
    return path


def load_student_model(run: Path) -> "Student":
    """The student of ``run``, for inference. Raises ValueError if there is no whole one.

    Nothing in the directory is run, whoever wrote it.
    """
    path = model_directory(run)
    from stages.train_student.export.stored_student import load_stored_student

    return load_stored_student(path)


def load_student_tokenizer(run: Path, head_rows: int) -> Any:
    """The tokenizer beside the student of ``run``, which has ``head_rows`` embeddings.

    Raises ValueError if there is none, or one whose ids the student does not have.
    """
    path = model_directory(run)
    from stages.model_files.tokenizer_files import TOKENIZER_FILES, load_tokenizer
    from stages.train_student.export.checksums import require_unchanged

    require_unchanged(path, TOKENIZER_FILES)
    tokenizer = load_tokenizer(path)
    largest = max(tokenizer.get_vocab().values(), default=0)
    if largest >= head_rows:
        raise ValueError(
            f"{path}: its tokenizer makes ids up to {largest}, but the student has {head_rows} "
            "embeddings. The files do not match: copy the whole directory again."
        )
    return tokenizer


def require_student(place: Path) -> None:
    """Raise ValueError where ``place`` holds neither a model nor a checkpoint.

    Imports nothing heavy.
    """
    from stages.train_student.export.model_directory import (
        find_model_directory,
        has_checkpoint,
        no_student,
    )

    if find_model_directory(place) is None and not has_checkpoint(place):
        raise no_student(place)


@contextmanager
def student_files(
    place: Path, cache: Path | str | None, say: Callable[[str], None]
) -> Iterator[StudentFiles]:
    """The student at ``place``: its model or, if there is none yet, its newest whole checkpoint.

    A checkpoint holds what was trained. All else comes from ``cache``; by default from the
    directory that the run has read. ``say`` is told which step is used. Raises ValueError where
    there is no student or no cache of its teacher, and where only a file of the run names a URL.
    """
    from stages.train_student.export.model_directory import (
        find_model_directory,
        newer_checkpoint_note,
    )

    path = find_model_directory(place)
    if path is not None:
        if note := newer_checkpoint_note(path):
            say(note)
        yield StudentFiles(directory=path, source=path, step=None)
        return
    import cache_format
    from stages.train_student.export.saved_student import find_checkpoint, publish_checkpoint

    checkpoint, problems = find_checkpoint(place)
    for problem in problems:
        say(problem)
    say(f"{checkpoint.path}: step {checkpoint.step} of an unfinished run")
    with TemporaryDirectory(prefix="xlstm-student-") as temporary:
        directory = Path(temporary) / "model"
        where = cache if cache is not None else _cache_location(checkpoint.path)
        say(f"its embedding, head and tokenizer are read from {where}")
        opened = cache_format.open(where, allow_incomplete=True)
        publish_checkpoint(checkpoint, opened, directory)
        yield StudentFiles(directory=directory, source=checkpoint.path, step=checkpoint.step)


def _cache_location(checkpoint: Path) -> str:
    """The directory from which the run of ``checkpoint`` has read its cache, or one of several.

    Whoever wrote the run may have put a URL there, and a request says who asks: it is named, and
    never opened. Raises ValueError where there is no directory to use.
    """
    from stages.train_student.checkpoints.run_record import RUN_FILE, read_record

    run = checkpoint.resolve().parent.parent
    needed = f"{checkpoint}: the student's embedding, head and tokenizer are in its cache"
    if not (run / RUN_FILE).is_file():
        raise ValueError(f"{needed}. Give its location with --cache.")
    record = read_record(run)
    known = (record.cache_location, *record.cache_locations)
    location = next(filter(_is_directory, known), record.cache_location)
    if "://" in location:
        raise ValueError(
            f"{needed}, which {run / RUN_FILE} says is at {location!r}. An address that only "
            "a file names is not contacted: if you trust it, give it with --cache."
        )
    if not _is_directory(location):
        raise ValueError(
            f"{needed}, which was at {location} and is no longer there. Give its new location with "
            "--cache; another cache of the same teacher also works."
        )
    return location


def _is_directory(location: str) -> bool:
    return "://" not in location and Path(location).is_absolute() and Path(location).is_dir()
