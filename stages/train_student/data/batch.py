"""A batch: rows of a cache as tensors.

In: an open cache, or a mixture of several, and row numbers. Out: a ``Batch``.

Shapes: R rows of a batch, T positions, P of them scored, D width, L projected states of a
position, d numbers of each.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from itertools import groupby
from operator import itemgetter
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from cache_format.codec.row_codec import Row
from cache_format.metadata.spec import Split
from cache_format.reader import Cache
from cache_format.tables.random_projection import sketch_signs
from stages.train_student.data.mixed_sampler import located
from stages.train_student.data.mixture import CacheMixture
from stages.train_student.data.targets.kind import BatchTargets
from stages.train_student.data.targets.kinds import kind_of
from stages.train_student.data.targets.mixed import MixedTargets, PartTargets

_UNLABELLED = -100


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Rows as tensors. ``labels`` is −100 where a position is not scored."""

    input_ids: Tensor
    """int64 [R, T]"""
    labels: Tensor
    """int64 [R, T]"""
    scored: Tensor
    """int64 [P], the positions whose label is to be learned, counted through [R, T].
    Known before the batch goes to a device, so that nothing on it has to be waited for"""
    is_document_start: Tensor
    """bool [R, T]; stays on the host, where the student looks at it before it lays out a batch"""
    targets: BatchTargets
    """What the cache holds of the teacher's distributions, as its kind of target has it"""
    next_logprob: Tensor | None
    """float32 [R, T]; None where the cache does not hold it"""
    sketch: Tensor | None
    """float32 [R, T, L, d], projected hidden states"""
    projection: Tensor | None
    """int8 [R, D, d], the signs of each row's shard; or float32 [1, D, d], one matrix for all"""

    @property
    def num_rows(self) -> int:
        """R"""
        return len(self.input_ids)

    @property
    def num_scored(self) -> int:
        """P"""
        return len(self.scored)

    def pinned(self) -> "Batch":
        """The batch in memory that a GPU copies from while it computes."""
        return self._mapped(lambda tensor: tensor.pin_memory())

    def record_stream(self, stream: torch.cuda.Stream) -> None:
        """Let no memory of the batch be given away before ``stream`` is done with it."""

        def record(tensor: Tensor) -> Tensor:
            if tensor.is_cuda:
                tensor.record_stream(stream)
            return tensor

        self._mapped(record)

    def to(self, device: torch.device) -> "Batch":
        """The batch on ``device``, but for ``is_document_start``."""
        moved = self._mapped(lambda tensor: tensor.to(device, non_blocking=True))
        return replace(moved, is_document_start=self.is_document_start)

    def _mapped(self, function: Callable[[Tensor], Tensor]) -> "Batch":
        mapped: dict[str, Any] = {"targets": self.targets.mapped(function)}
        for field in fields(self):
            if field.name not in mapped:
                value = getattr(self, field.name)
                mapped[field.name] = None if value is None else function(value)
        return Batch(**mapped)


def read_batch(cache: Cache, split: Split, indices: Sequence[int], *, with_sketch: bool) -> Batch:
    """The rows ``indices`` of ``split`` as one batch."""
    read = _read(cache, split, indices, with_sketch)
    targets = kind_of(cache.spec.targets).batch_targets(read.rows, cache.spec.targets)
    return _batch(read.rows, targets, read.projection)


def read_mixed_batch(mixture: CacheMixture, indices: Sequence[int], *, with_sketch: bool) -> Batch:
    """The training rows ``indices``, see ``located``, of which those of one cache are together.

    Of one cache alone, indices are its rows.
    """
    if not mixture.is_mixed:
        return read_batch(mixture.caches[0], "train", indices, with_sketch=with_sketch)
    rows: list[Row] = []
    parts, projections = [], []
    for source, own in groupby(located(indices, len(mixture.caches)), key=itemgetter(0)):
        cache = mixture.caches[source]
        read = _read(cache, "train", [row for _, row in own], with_sketch)
        part = PartTargets(
            source=source,
            first_row=len(rows),
            num_scored=int(sum(row.scored().sum() for row in read.rows)),
            targets=kind_of(cache.spec.targets).batch_targets(read.rows, cache.spec.targets),
        )
        parts.append(part)
        projections.append(read.projection)
        rows += read.rows
    targets = MixedTargets(tuple(parts), mixture.caches[0].spec.sequence_length)
    return _batch(rows, targets, _joined(projections))


class _Read(NamedTuple):
    rows: list[Row]
    projection: Tensor | None
    """See ``Batch.projection``; None where sketches are not read."""


def _read(cache: Cache, split: Split, indices: Sequence[int], with_sketch: bool) -> _Read:
    read = [cache.read_row(split, index, with_sketch=with_sketch) for index in indices]
    projection = _projection(cache, [unit for unit, _ in read]) if with_sketch else None
    return _Read([row for _, row in read], projection)


def _batch(rows: Sequence[Row], targets: BatchTargets, projection: Tensor | None) -> Batch:
    sketch = None
    if projection is not None:
        sketch = torch.from_numpy(np.stack([row.sketch for row in rows]))  # type: ignore[misc]
    starts, labels = zip(*(_starts_and_labels(row) for row in rows), strict=True)
    labels_RT = np.stack(labels)
    return Batch(
        input_ids=torch.from_numpy(np.stack([row.token_ids[:-1] for row in rows]).astype(np.int64)),
        labels=torch.from_numpy(labels_RT),
        scored=torch.from_numpy(np.flatnonzero(labels_RT != _UNLABELLED)),
        is_document_start=torch.from_numpy(np.stack(starts)),
        targets=targets,
        next_logprob=_next_logprob(rows),
        sketch=sketch,
        projection=projection,
    )


def _joined(projections: Sequence[Tensor | None]) -> Tensor | None:
    """That of all rows, from those of each cache's: one matrix for all is the same in each."""
    found = [projection for projection in projections if projection is not None]
    if not found or found[0].is_floating_point():
        return found[0] if found else None
    return torch.cat(found)


def _next_logprob(rows: Sequence[Row]) -> Tensor | None:
    kept = [row.kept_ids for row in rows if row.kept_ids is not None]
    return torch.from_numpy(np.stack([one.next_logprob for one in kept])) if kept else None


def _projection(cache: Cache, units: Sequence[int]) -> Tensor:
    """What the sketches of rows of ``units`` were projected with; see ``Batch.projection``."""
    spec = cache.spec
    if spec.sketch.kind == "pca":
        assert cache.projection is not None
        return torch.from_numpy(cache.projection[None].copy())
    shape = (spec.teacher.hidden_size, spec.sketch.dim)
    by_unit = {unit: sketch_signs(spec.seed, unit, *shape) for unit in units}
    return torch.from_numpy(np.stack([by_unit[unit] for unit in units]))


def _starts_and_labels(row: Row) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.int64]]:
    num_positions = len(row.token_ids) - 1
    is_start = np.zeros(num_positions + 1, np.bool_)
    is_start[row.document_starts] = True
    is_start[0] = True
    labels = row.token_ids[1:].astype(np.int64)
    labels[~row.scored()] = _UNLABELLED
    return is_start[:-1], labels
