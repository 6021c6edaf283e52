"""What can be refused before torch, transformers and xlstm are imported, which takes long.

In: the settings, open caches, and the directory of the run. Out: nothing, or the error that the
stage itself would raise after them. The stage checks all of it again, and more.
"""

from dataclasses import replace
from pathlib import Path

from cache_format.reader import Cache
from stages.train_student.config import TrainStudentConfig
from stages.train_student.data.mixable import require_mixable
from stages.train_student.data.mixture import CacheMixture, mixture_of
from stages.train_student.data.requirements import require_targets
from stages.train_student.data.teacher_weights import require_teacher_weights
from stages.train_student.losses.terms import cache_needs
from stages.train_student.students.required_packages import require_packages
from stages.train_student.tracking.trackers import require_trackers
from stages.train_student.trainer import run_directory


def check_early(
    config: TrainStudentConfig,
    cache: Cache | CacheMixture,
    out: Path,
    *,
    resume: bool,
    online: bool,
    teacher: Path | None = None,
) -> None:
    """Raise ValueError where settings, ``cache`` or caches and ``out`` do not fit together.

    ``teacher`` is the directory of all its weights, if one is given. Nothing is written.
    """
    mixture = mixture_of(cache)
    require_caches(config, mixture, teacher, online=online)
    require_trackers(config.report_to)
    require_packages(config.student)
    if not _begins_anew(out):  # then this refuses, or finds the run that is resumed
        if config.precision == "auto" and (precision := run_directory.recorded_precision(out)):
            config = replace(config, precision=precision)
        run_directory.require_same_or_new(out, mixture, config, resume=resume, online=online)


def require_caches(
    config: TrainStudentConfig, mixture: CacheMixture, teacher: Path | None, *, online: bool
) -> None:
    """Raise ValueError where a cache lacks what ``config`` needs, or several do not go together."""
    needs = cache_needs(config)
    require_mixable(mixture, needs)
    require_teacher_weights(config.student, mixture.reference, teacher)
    for cache in mixture.caches:
        require_targets(config, cache, needs, online=online)


def _begins_anew(out: Path) -> bool:
    """Whether there is nothing in ``out`` that a run would have to agree with."""
    if not out.is_dir() or not any(out.iterdir()):
        return True
    has_begun = (out / "run.json").is_file() and not (out / "model").exists()
    return has_begun and not any((out / "checkpoints").glob("step-*"))
