"""Validation: how far the student is from the text and from its teacher.

In: the student and the cache's validation split. Out: mean cross-entropy and KL in nats per scored
position, top-1 agreement, accuracy and calibration error (see ``calibration``); and, on the same
positions, what the cache tells of the teacher: its cross-entropy and, unless the cache holds
nothing but samples, its accuracy and calibration error. Of a student that holds its teacher, also
its layers' output gates and, in an alignment, how far they are from the teacher's.

KL is taken at T = 1; of a cache of samples, at the temperature that these were drawn at. What it
is depends on the cache's targets, so only figures of one cache compare: of ``top_k`` it is over K+1
outcomes, of ``top_k+sampled`` an unbiased estimate of the whole, of ``sampled`` too high by what so
few draws leave open (see ``losses/sparse_kl``), of ``hidden`` over the whole vocabulary. With the
tail's moments, and a student whose head is the teacher's, that of the first two is nearer to the
whole (``losses/tail_moment``). The teacher's choice is its largest logit; of a cache of samples,
the id that was drawn most.
"""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from cache_format.reader import Cache
from stages.train_student.data.batch import Batch, read_batch
from stages.train_student.data.scored import scored
from stages.train_student.data.targets.kinds import kind_of
from stages.train_student.data.temperatures import validation_temperature
from stages.train_student.evaluation.calibration import StudentCalibration, TeacherCalibration
from stages.train_student.evaluation.divergence import Divergence, TeacherDivergence
from stages.train_student.evaluation.layers import LayerAlignments, LayerWatch, OutputGates
from stages.train_student.evaluation.validation_metric import ScoredPositions, ValidationMetric
from stages.train_student.losses.objective import Objective
from stages.train_student.students.student import Student


def validation_batches(
    cache: Cache, num_rows: int, max_rows: int, batch_size: int
) -> Iterator[Batch]:
    """The rows ``validation_rows`` of the split, in batches."""
    return _batches(cache, validation_rows(num_rows, max_rows), batch_size)


def batches_by_corpus(
    cache: Cache, num_rows: int, max_rows: int, batch_size: int
) -> dict[str | None, Iterator[Batch]]:
    """``validation_batches`` of each of the cache's corpora that has any of these rows, by its
    name; the name of one that is the only one is None."""
    shares = cache.spec.corpora or ()
    rows: dict[str | None, list[int]] = {share.name: [] for share in shares} or {None: []}
    for row in validation_rows(num_rows, max_rows):
        rows[cache.corpus_of_row("validation", row)].append(row)
    return {name: _batches(cache, own, batch_size) for name, own in rows.items() if own}


def _batches(cache: Cache, rows: Sequence[int], batch_size: int) -> Iterator[Batch]:
    for start in range(0, len(rows), batch_size):
        chosen = rows[start : start + batch_size]
        yield read_batch(cache, "validation", chosen, with_sketch=False)


def validation_rows(num_rows: int, max_rows: int) -> list[int]:
    """At most ``max_rows``, spread evenly over the first ``num_rows``."""
    spread = np.linspace(0, num_rows - 1, min(max_rows, num_rows))
    return [int(row) for row in np.unique(spread.round())]


def validate(
    model: Student,
    objective: Objective,
    cache: Cache,
    *,
    num_rows: int,
    max_rows: int,
    batch_size: int,
) -> dict[str, float]:
    """Metrics of ``model`` on the validation split; the names are the keys of the result."""
    batches = validation_batches(cache, num_rows, max_rows, batch_size)
    return score(model, objective, batches)


def score(model: Student, objective: Objective, batches: Iterable[Batch]) -> dict[str, float]:
    """``validate`` on ``batches``. Raises ValueError where none of their positions is scored."""
    return _named(measure(model, objective, batches).values())


def score_each(
    model: Student, parts: Mapping[str, tuple[Objective, Iterable[Batch]]]
) -> dict[str, float]:
    """``score`` of several caches or corpora by their labels, and over all of their positions.

    The names are those of ``score`` for the whole, and ``validation/LABEL/NAME`` for a part, which
    has the number of its scored positions as well: weighted by these, its figures add up to those
    of the whole (a perplexity and a calibration error are no means, and do not).
    """
    whole: Measured | None = None
    found: dict[str, float] = {}
    for label, (objective, batches) in parts.items():
        measured = measure(model, objective, batches, f"validation of {label}")
        values = {**measured.values(), "positions": measured.num_scored}
        found |= _named(values, f"validation/{label}")
        whole = measured if whole is None else whole.merged(measured)
    assert whole is not None, "there are parts"
    return _named(whole.values()) | found


def _named(values: Mapping[str, float], prefix: str = "validation") -> dict[str, float]:
    return {f"{prefix}/{name}": value for name, value in values.items()}


@dataclass(frozen=True)
class Measured:
    """The metrics of some positions."""

    metrics: Sequence[ValidationMetric]
    num_scored: int
    name: str
    """What errors call it."""

    def merged(self, other: "Measured") -> "Measured":
        """Those of the positions of both; these metrics are the ones that count them."""
        for own, theirs in zip(self.metrics, other.metrics, strict=True):
            own.merge(theirs)
        return replace(self, num_scored=self.num_scored + other.num_scored)

    def values(self) -> dict[str, float]:
        """By their names. Raises ValueError where the teacher's loss is no number."""
        found = {name: value for metric in self.metrics for name, value in metric.values().items()}
        if not math.isfinite(found["teacher_loss"]):
            raise ValueError(
                f"{self.name}: the cache gives its teacher a loss that is no number. Its hidden "
                "states or head are damaged, or were made to be: make the cache again."
            )
        return found


@torch.no_grad()
def measure(
    model: Student, objective: Objective, batches: Iterable[Batch], name: str = "validation"
) -> Measured:
    """The metrics of ``model`` on ``batches``. Raises ValueError as ``score`` does."""
    was_training = model.training
    model.train(False)
    device, metrics = objective.device, validation_metrics(objective)
    watch = LayerWatch(model, objective.compares_layers)
    num_scored = 0
    for batch in batches:
        if not batch.num_scored:
            continue
        on_device = batch.to(device)
        with watch.gates() as gates:
            hidden_BTD = hidden_states(model, objective, on_device)
        positions = ScoredPositions(
            hidden_ND=scored(hidden_BTD, on_device),
            head_VD=objective.head_of(model),  # after the forward pass, which may gather it
            labels_N=scored(on_device.labels, on_device),
            targets=objective.decode(on_device.targets, on_device.scored),
            next_logprob_N=None
            if batch.next_logprob is None
            else scored(batch.next_logprob, batch),
            layers=watch.figures(on_device, gates, objective.dtype),
        )
        for metric in metrics:
            metric.add(positions)
        num_scored += batch.num_scored
    model.train(was_training)
    if num_scored == 0:
        raise ValueError(
            f"{name}: no position has a label of its own document, so there is nothing to score. "
            "Read more validation rows, or cache longer documents."
        )
    return Measured(metrics, num_scored, name)


def hidden_states(model: Student, objective: Objective, batch: Batch) -> Tensor:
    """What ``model`` makes of ``batch``, in the precision of ``objective``: [B, T, D]."""
    dtype, uses_autocast = objective.dtype, objective.uses_autocast
    with torch.autocast(objective.device.type, dtype, enabled=uses_autocast):
        return model.hidden_states(batch.input_ids, batch.is_document_start)


def validation_metrics(objective: Objective) -> list[ValidationMetric]:
    """The metrics of one validation, in the order that they are reported."""
    spec, vocabulary = objective.spec.targets, objective.vocabulary
    temperature = validation_temperature(spec.inverse_temperatures)
    metrics: list[ValidationMetric] = [
        Divergence(vocabulary, temperature),
        StudentCalibration(vocabulary.chunk),
        TeacherDivergence(vocabulary.chunk),
    ]
    if kind_of(spec).KNOWS_PROBABILITIES:
        metrics.append(TeacherCalibration(vocabulary.chunk))
    return [*metrics, LayerAlignments(), OutputGates()]
