"""What can be refused before torch, transformers and xlstm are imported, which takes long.

In: the settings, an open cache, and the directory of the run. Out: nothing, or the error that the
stage itself would raise after them. The stage checks all of it again, and more.
"""

from dataclasses import replace
from pathlib import Path

from cache_format.reader import Cache
from stages.train_student.config import TrainStudentConfig
from stages.train_student.data.requirements import require_targets
from stages.train_student.data.teacher_weights import require_teacher_weights
from stages.train_student.losses.terms import cache_needs
from stages.train_student.students.required_packages import require_packages
from stages.train_student.tracking.trackers import require_trackers
from stages.train_student.trainer import run_directory


def check_early(
    config: TrainStudentConfig,
    cache: Cache,
    out: Path,
    *,
    resume: bool,
    online: bool,
    teacher: Path | None = None,
) -> None:
    """Raise ValueError where settings, ``cache`` and ``out`` do not fit together.

    ``teacher`` is the directory of all its weights, if one is given. Nothing is written.
    """
    require_teacher_weights(config.student, cache, teacher)
    require_targets(config, cache, cache_needs(config), online=online)
    require_trackers(config.report_to)
    require_packages(config.student)
    if not _begins_anew(out):  # then this refuses, or finds the run that is resumed
        if config.precision == "auto" and (precision := run_directory.recorded_precision(out)):
            config = replace(config, precision=precision)
        run_directory.require_same_or_new(out, cache, config, resume=resume, online=online)


def _begins_anew(out: Path) -> bool:
    """Whether there is nothing in ``out`` that a run would have to agree with."""
    if not out.is_dir() or not any(out.iterdir()):
        return True
    has_begun = (out / "run.json").is_file() and not (out / "model").exists()
    return has_begun and not any((out / "checkpoints").glob("step-*"))
