"""Evaluate a student and its teacher on the validation split of a cache.

In: a run or model directory and a cache that its teacher made. Out: loss, perplexity, KL,
agreement, accuracy and calibration error, as numbers and as a table. The teacher is not loaded:
what it said of these positions lies in the cache.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.students.student_files import load_student_model, model_directory
from stages.train_student.tracking.metric_labels import VALIDATION, MetricLabel, label_at

if TYPE_CHECKING:
    from cache_format.reader import Cache
    from stages.train_student.data.batch import Batch
    from stages.train_student.evaluation.row_scores import RowScores
    from stages.train_student.losses.objective import Objective
    from stages.train_student.students.student import Student, StudentModelConfig

_COLUMNS = tuple(label for label in VALIDATION if label.column is not None)
_LOSS_CHUNK = 256  # positions whose full logits exist at once


@dataclass(frozen=True, kw_only=True)
class EvalOptions:
    """How much is evaluated at a time, and in all."""

    num_rows: int | None
    """Rows, spread evenly over the split; None takes all."""
    batch_size: int
    """Rows in one forward pass."""
    device: str
    """``auto``, ``cpu``, ``cuda`` or ``cuda:N``."""


def evaluate_student(
    run: Path, cache: "Cache", extent: EvalOptions, report: Callable[[int, int], None]
) -> dict[str, Any]:
    """Figures of the student and its teacher; ``report`` is told rows done and rows in all.

    Raises ValueError if ``run`` holds no student, or one whose figures are not finite, or ``cache``
    is not of its teacher. A perplexity that is too large for a float is left out.
    """
    from stages.train_student.data.targets.kinds import kind_of, kl_note
    from stages.train_student.data.temperatures import validation_temperature
    from stages.train_student.evaluation.validation import batches_by_corpus, score, score_each

    path = model_directory(run)
    num_rows = cache.num_rows("validation")
    model, objective = _load(run, cache, extent.device)
    if num_rows == 0:
        raise ValueError(
            f"{cache.path}: its validation split is empty, so there is nothing to evaluate on. Use "
            "another cache of the same teacher, or cache more tokens."
        )
    num_chosen = min(extent.num_rows or num_rows, num_rows)
    counted = _Counted(num_chosen, report)
    parts = {
        name: (objective, counted.each(batches))
        for name, batches in batches_by_corpus(
            cache, num_rows, num_chosen, extent.batch_size
        ).items()
    }
    names = [name for name in parts if name is not None]
    figures = (
        score_each(model, {name: parts[name] for name in names})
        if names
        else score(model, *parts[None])
    )
    _require_finite(path, figures)
    kind = kind_of(cache.spec.targets)
    return {
        "model": str(path),
        "cache": str(cache.path),
        "cache_id": cache.cache_id,
        "is_training_cache": _is_trained_on(model.config, cache),
        "rows": counted.num_rows,
        "rows_in_split": num_rows,
        "positions": counted.num_scored,
        "kl_temperature": validation_temperature(cache.spec.targets.inverse_temperatures),
        **_of_both(figures, "validation", kind.KNOWS_PROBABILITIES),
        **(
            {
                "corpora": {
                    name: {"positions": int(figures[f"validation/{name}/positions"])}
                    | _of_both(figures, f"validation/{name}", kind.KNOWS_PROBABILITIES)
                    for name in names
                }
            }
            if names
            else {}
        ),
        "notes": _notes(model.config, cache, kl_note(cache.spec.targets)),
    }


def evaluate_rows(
    run: Path,
    cache: "Cache",
    rows: Sequence[int],
    extent: EvalOptions,
    report: Callable[[int, int], None],
) -> "RowScores":
    """What the student scores on each of ``rows`` of the validation split; see ``row_scores``.

    Raises ValueError as ``evaluate_student`` does.
    """
    from stages.train_student.data.batch import read_batch
    from stages.train_student.evaluation.row_scores import score_rows

    model, objective = _load(run, cache, extent.device)
    batches = (
        read_batch(cache, "validation", rows[start : start + extent.batch_size], with_sketch=False)
        for start in range(0, len(rows), extent.batch_size)
    )
    scores = score_rows(model, objective, _Counted(len(rows), report).each(batches))
    sums = {"loss": sum(scores.cross_entropy), "kl": sum(scores.kl)}
    _require_finite(model_directory(run), {f"validation/{name}": sums[name] for name in sums})
    return scores


def _load(run: Path, cache: "Cache", device_name: str) -> "tuple[Student, Objective]":
    """The student of ``run`` on its device, and what scores it there in float32."""
    from stages.compute.device import choose_device
    from stages.train_student.config import TrainStudentConfig
    from stages.train_student.losses.objective import make_objective

    device = choose_device(device_name)
    model = load_student_model(run)
    _require_same_teacher(model_directory(run), model.config, cache)
    model.to(device)
    settings = TrainStudentConfig(precision="fp32", loss_chunk=_LOSS_CHUNK, compile="off")
    return model, make_objective(model, cache, settings, device)


def evaluation_text(evaluation: dict[str, Any]) -> str:
    """``evaluation`` as a table for people."""
    temperature = evaluation["kl_temperature"]
    rows = [["", *(label_at(label.column or "", temperature) for label in _COLUMNS)]]
    each = [("", evaluation), *evaluation.get("corpora", {}).items()]
    for corpus, who in ((c, w) for c in each for w in ("teacher", "student")):
        name, found = corpus[0], corpus[1][who]
        figures = ((label.format, found.get(_name(label))) for label in _COLUMNS)
        cells = ["–" if figure is None else format(figure, form) for form, figure in figures]
        rows.append([f"{who}, {name}" if name else who, *cells])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]) for row in rows
    ]
    lines += [
        "",
        f"{evaluation['cache']}: {evaluation['rows']:,} of {evaluation['rows_in_split']:,} "
        f"validation rows, {evaluation['positions']:,} scored positions.",
        *evaluation["notes"],
    ]
    return "\n".join(lines)


class _Counted:
    """Batches, counted and reported as they are read."""

    def __init__(self, num_total: int, report: Callable[[int, int], None]) -> None:
        self._num_total, self._report = num_total, report
        self.num_rows = self.num_scored = 0

    def each(self, batches: "Iterable[Batch]") -> "Iterator[Batch]":
        """``batches``."""
        for batch in batches:
            yield batch
            self.num_rows += batch.num_rows
            self.num_scored += batch.num_scored
            self._report(self.num_rows, self._num_total)


def _of_both(
    figures: dict[str, float], split: str, knows_probabilities: bool
) -> dict[str, dict[str, float]]:
    """The figures of student and teacher under the name ``split``."""
    known = {"kl": 0.0, "agreement": 1.0} if knows_probabilities else {}
    return {
        "student": _figures_of(f"{split}/", figures),
        "teacher": _figures_of(f"{split}/teacher_", figures) | known,
    }


def _figures_of(prefix: str, figures: dict[str, float]) -> dict[str, float]:
    names = map(_name, _COLUMNS)
    found = {name: figures[prefix + name] for name in names if prefix + name in figures}
    return {name: figure for name, figure in found.items() if math.isfinite(figure)}


def _name(label: MetricLabel) -> str:
    return label.key.removeprefix("validation/")


def _notes(config: "StudentModelConfig", cache: "Cache", kl_note: str) -> list[str]:
    notes = [kl_note]
    is_trained = config.cache_id is not None or config.num_steps is not None
    if is_trained and not _is_trained_on(config, cache):
        notes.append(
            "This is not the cache that the student was trained on, so the student may have been "
            "trained on these documents."
        )
    return notes


def _is_trained_on(config: "StudentModelConfig", cache: "Cache") -> bool:
    from stages.train_student.students.student import named_caches

    return cache.cache_id in named_caches(config)


def _require_finite(path: Path, figures: dict[str, float]) -> None:
    """Raise ValueError where one is NaN or infinite; a perplexity may be too large for a float."""
    for key, figure in figures.items():
        if not math.isfinite(figure) and not key.endswith("perplexity"):
            raise ValueError(
                f"{path}: cannot be evaluated: {key} is {figure}. The student's weights are finite "
                "but too large to compute with. Export it anew from an older checkpoint."
            )


def _require_same_teacher(path: Path, config: "StudentModelConfig", cache: "Cache") -> None:
    """The cache's ids and probabilities must be of the teacher whose head the student has."""
    from stages.train_student.checkpoints.teacher_identity import require_same_teacher

    if config.teacher is None:
        raise ValueError(
            f"{path / 'config.json'}: does not record the student's teacher, so "
            "the student cannot be evaluated on a cache. `pipeline train-student` records it."
        )
    require_same_teacher(str(path), config.teacher, cache)
