"""What stage one makes of a teacher's rows, without a cache on disk.

In: a teacher, packed rows, settings of stage one. Out: the spec and shared files of a cache with
these targets, and its rows, as they are and encoded. The teacher's body runs once for all settings.

B rows of a forward pass, T positions, D width.
"""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from cache_format.codec.row import Row
from cache_format.codec.row_codec import encode_row
from cache_format.metadata.spec import CacheSpec
from cache_format.metadata.spec_parts.targets import CodedStates, TailMoment
from cache_format.tables.hidden_transform import HiddenTransform
from cache_format.tables.principal_components import Projection
from cache_format.tables.shared_files import SharedFiles
from cache_format.tables.tail_moment import MomentTransform
from cache_format.tables.vocabulary_ranks import RankTable
from stages.cache_teacher.config import CacheTeacherConfig
from stages.cache_teacher.corpus.corpora import Described
from stages.cache_teacher.corpus.packing import PackedUnit
from stages.cache_teacher.setup import identity
from stages.cache_teacher.setup.fitted import fit_all
from stages.cache_teacher.setup.hidden_fit import HiddenFit
from stages.cache_teacher.setup.moment_fit import fit_moment
from stages.cache_teacher.setup.pca import principal_components
from stages.cache_teacher.teacher.forward import PendingRows, TeacherStep
from stages.cache_teacher.teacher.teacher import Teacher

_POSITIONS_PER_FORWARD = 2048


@dataclass(frozen=True)
class ShownRows:
    """Rows that the teacher has been shown."""

    packed: PackedUnit
    batches: Sequence[tuple[PackedUnit, Tensor]]
    """The rows of each forward pass, and the last hidden states [B, T, D] of these."""

    @property
    def num_tokens(self) -> int:
        """Positions, scored or not."""
        return int(self.packed.scored_RT().size)

    def scored_states(self) -> Tensor:
        """The last hidden states of the scored positions, float32 [N, D]."""
        return torch.cat(
            [
                hidden_BTD[torch.from_numpy(batch.scored_RT()).to(hidden_BTD.device)].float()
                for batch, hidden_BTD in self.batches
            ]
        )


@dataclass(frozen=True)
class MadeRows:
    """Rows of a cache, and what they took."""

    rows: list[Row]
    cells: list[dict[str, bytes]]
    """The binary columns of each row."""
    device_seconds: float
    """That the device was busy, with the teacher's body only if that ran."""
    host_seconds: float
    """Of one thread, to form and encode them."""

    def num_bytes(self, columns: Sequence[str]) -> int:
        """Bytes of some columns."""
        return sum(len(cells[name]) for cells in self.cells for name in columns)


@dataclass(frozen=True)
class TeacherRows:
    """Makes rows with a teacher; what needs fitting is fitted to ``first_unit``."""

    teacher: Teacher
    first_unit: PackedUnit
    ranks: RankTable
    corpora: Described

    def spec(self, config: CacheTeacherConfig) -> tuple[CacheSpec, SharedFiles]:
        """The spec of a cache with these settings, and the files that its shards share."""
        teacher, sha256 = self.teacher.source.spec, self.ranks.sha256
        return fit_all(
            identity.make_spec(config, teacher, self.corpora, sha256), self.ranks, self._fit
        )

    def show(self, packed: PackedUnit) -> ShownRows:
        """Run the teacher's body over ``packed``."""
        batches = [
            (
                batch,
                self.teacher.forward(batch.token_ids_RT[:, :-1], batch.document_starts, layers=())[
                    0
                ],
            )
            for batch in _batches(packed)
        ]
        return ShownRows(packed, batches)

    def make(
        self,
        shown: ShownRows,
        made_of: tuple[CacheSpec, SharedFiles],
        config: CacheTeacherConfig,
        unit: int = 1,
    ) -> MadeRows:
        """The rows of ``shown``, as rows of ``unit``. There is no sketch."""
        step = TeacherStep(self.teacher, made_of[0], config, made_of[1])
        pending, first_row = [], 0
        for batch, hidden_BTD in shown.batches:
            pending.append(step.launch_states(batch, unit, first_row, hidden_BTD))
            first_row += len(batch.token_ids_RT)
        return _made(pending, *made_of)

    def make_whole(
        self, packed: PackedUnit, made_of: tuple[CacheSpec, SharedFiles], config: CacheTeacherConfig
    ) -> MadeRows:
        """The rows of ``packed`` as stage one makes them: body, targets and sketch."""
        step = TeacherStep(self.teacher, made_of[0], config, made_of[1])
        pending, first_row = [], 0
        for batch in _batches(packed):
            pending.append(step.launch(batch, 1, first_row))
            first_row += len(batch.token_ids_RT)
        return _made(pending, *made_of)

    @cached_property
    def _fit(self) -> "_Fit":
        return _Fit(self.teacher, self.first_unit)


@dataclass(frozen=True)
class _Fit:
    """See ``stages.cache_teacher.setup.fitted``."""

    teacher: Teacher
    packed: PackedUnit

    def projection(self, spec: CacheSpec) -> Projection:
        sketch, num_rows = spec.sketch, rows_per_forward(self.packed)
        return principal_components(
            self.teacher, self.packed, sketch.hidden_states, sketch.dim, num_rows
        )

    def transform(self, spec: CacheSpec) -> tuple[CodedStates, HiddenTransform]:
        states = spec.targets.states
        return self._hidden.transform(states.max_kl, states.quantization)

    def moment(self, spec: CacheSpec) -> tuple[TailMoment, MomentTransform]:
        return fit_moment(self.teacher, self.packed, spec.targets, rows_per_forward(self.packed))

    @cached_property
    def _hidden(self) -> HiddenFit:
        return HiddenFit(self.teacher, self.packed, rows_per_forward(self.packed))


def _made(pending: Sequence[PendingRows], spec: CacheSpec, shared: SharedFiles) -> MadeRows:
    for one in pending:
        one.wait()
    begun = time.perf_counter()
    rows = [row for one in pending for row in one.rows()]
    cells = [cells_of(row, spec, shared) for row in rows]
    host_seconds = time.perf_counter() - begun
    return MadeRows(rows, cells, sum(one.device_seconds() for one in pending), host_seconds)


def cells_of(row: Row, spec: CacheSpec, shared: SharedFiles) -> dict[str, bytes]:
    """The binary columns of a row."""
    encoded = encode_row(row, spec, shared)
    return {name: cell for name, cell in encoded.items() if isinstance(cell, bytes)}


def halves(packed: PackedUnit) -> tuple[PackedUnit, PackedUnit]:
    """What a transform is fitted to, and what is measured."""
    middle = len(packed.token_ids_RT) // 2
    return packed.rows(0, middle), packed.rows(middle, 2 * middle)


def rows_per_forward(packed: PackedUnit) -> int:
    """Rows of a forward pass."""
    length: int = packed.token_ids_RT.shape[1] - 1
    return max(1, _POSITIONS_PER_FORWARD // length)


def _batches(packed: PackedUnit) -> Iterator[PackedUnit]:
    num_rows = rows_per_forward(packed)
    for first in range(0, len(packed.token_ids_RT), num_rows):
        yield packed.rows(first, first + num_rows)
