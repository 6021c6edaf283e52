"""What a student scored on each validation row of a cache, kept beside it.

In: a student's files and a cache. Out: its ``RowFigures``, from the file of an earlier evaluation
of the same weights on the same rows, or from a new one, which then writes that file.

``RUN/row-figures/CACHE-ROWS-MODEL.json`` is a sealed file; CACHE and MODEL begin the hashes that it
holds in full. A model directory that is in no run has the folder in itself.
"""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from cache_format.errors import StorageError
from cache_format.storage.atomic import make_directory, open_regular
from pipeline.students.evaluation import EvalOptions, evaluate_rows
from pipeline.students.student_files import StudentFiles

if TYPE_CHECKING:
    from cache_format.reader import Cache

FOLDER = "row-figures"


@dataclass(frozen=True, kw_only=True)
class RowFigures:
    """One student on rows of one cache. The last four have an item for each row."""

    cache_id: str
    validation_sha256: str
    """Of the hashes of the split's shards: a cache may have grown."""
    model_sha256: str
    """Of the student's settings and weights."""
    rows: tuple[int, ...]
    """Which of the split."""
    num_scored: tuple[int, ...]
    """Positions of the row that have a label of their own document."""
    cross_entropy: tuple[float, ...]
    """Nats, summed over them."""
    kl: tuple[float, ...]
    """Nats, summed over them."""
    num_agreeing: tuple[float, ...]
    """Positions where student and teacher have the same first choice."""

    def __post_init__(self) -> None:
        columns = (self.num_scored, self.cross_entropy, self.kl, self.num_agreeing)
        if any(len(column) != len(self.rows) for column in columns):
            raise ValueError(f"expected {len(self.rows)} rows in each column")
        if min(self.num_scored, default=0) < 0:
            raise ValueError("num_scored: expected 0 or more positions")


@dataclass(frozen=True, kw_only=True)
class RowOptions:
    """How a student is evaluated, and whether an earlier evaluation will do."""

    extent: EvalOptions
    is_fresh: bool = False
    """Evaluate anew, whatever is kept."""


def row_figures(
    place: Path,
    student: StudentFiles,
    cache: "Cache",
    options: RowOptions,
    report: Callable[[int, int], None] = lambda *_: None,
    warn: Callable[[str], None] = lambda _: None,
) -> RowFigures:
    """Figures of ``student``, which ``place`` named; ``report`` is told rows done and in all.

    Raises ValueError as ``evaluate_student``. ``warn`` is told where the file is damaged or cannot
    be written; the figures are returned all the same.
    """
    from stages.train_student.evaluation.row_scores import shards_hash
    from stages.train_student.evaluation.validation import validation_rows

    num_rows = cache.num_rows("validation")
    if num_rows == 0:
        raise ValueError(
            f"{cache.path}: its validation split is empty, so there is nothing to compare on. Use "
            "another cache of the same teacher."
        )
    rows = tuple(validation_rows(num_rows, min(options.extent.num_rows or num_rows, num_rows)))
    key = (cache.cache_id, shards_hash(cache), _model_hash(student.directory), rows)
    path = _folder(place) / f"{key[0][:12]}-{len(rows)}-{key[2][:12]}.json"
    if not options.is_fresh and (kept := _read(path, warn)) is not None and _key(kept) == key:
        return kept
    scores = evaluate_rows(student.directory, cache, rows, options.extent, report)
    found = RowFigures(
        cache_id=key[0],
        validation_sha256=key[1],
        model_sha256=key[2],
        rows=rows,
        num_scored=scores.num_scored,
        cross_entropy=scores.cross_entropy,
        kl=scores.kl,
        num_agreeing=scores.num_agreeing,
    )
    _write(path, found, warn)
    return found


def _key(figures: RowFigures) -> tuple[str, str, str, tuple[int, ...]]:
    return figures.cache_id, figures.validation_sha256, figures.model_sha256, figures.rows


def _folder(place: Path) -> Path:
    """Beside the student: in its run, whether the run, its model or a checkpoint was named."""
    for run in (place, place.absolute().parent, place.absolute().parent.parent):
        if (run / "run.json").is_file():
            return run / FOLDER
    return place / FOLDER


def _model_hash(directory: Path) -> str:
    """Of the names and contents of the files that decide what a student computes."""
    from stages.model_files.weight_files import weight_files

    total = hashlib.sha256()
    for name in ("config.json", *weight_files(directory)):
        with open_regular(directory / name) as file:
            total.update(f"{hashlib.file_digest(file, 'sha256').hexdigest()}  {name}\n".encode())
    return total.hexdigest()


def _read(path: Path, warn: Callable[[str], None]) -> RowFigures | None:
    from stages.train_student.run_files import parse_run_file, read_run_file

    if not path.is_file():
        return None
    try:
        return parse_run_file(RowFigures, read_run_file(path), path, "It is made anew.")
    except (ValueError, OSError) as error:
        warn(str(error))
        return None


def _write(path: Path, figures: RowFigures, warn: Callable[[str], None]) -> None:
    from stages.train_student.run_files import write_run_file

    try:
        make_directory(path.parent)
        write_run_file(path, figures)
    except (OSError, StorageError) as error:
        warn(f"{path}: not written: {error}. The next comparison evaluates the student again.")
