"""What stage one makes of a teacher's rows, without a cache on disk.

In: a teacher, packed rows, settings of stage one. Out: the spec and shared files of a cache with
these targets, and its rows.
"""

from dataclasses import dataclass
from typing import NoReturn

from benchmarks.positions import LEVELS, make_spec
from cache_format.codec.row import Row
from cache_format.codec.row_codec import encode_row
from cache_format.metadata.spec import CacheSpec
from cache_format.metadata.spec_parts.targets import CodedStates, TailMoment
from cache_format.tables.hidden_transform import HiddenTransform
from cache_format.tables.shared_files import SharedFiles
from cache_format.tables.tail_moment import MomentTransform
from cache_format.tables.vocabulary_ranks import RankTable
from stages.cache_teacher.config import CacheTeacherConfig
from stages.cache_teacher.corpus.packing import PackedUnit
from stages.cache_teacher.setup import identity
from stages.cache_teacher.setup.fitted import fit_all
from stages.cache_teacher.setup.hidden_fit import fit_transform
from stages.cache_teacher.setup.moment_fit import fit_moment
from stages.cache_teacher.teacher.forward import TeacherStep
from stages.cache_teacher.teacher.teacher import Teacher

_ROWS_PER_FORWARD = 4


@dataclass(frozen=True)
class TeacherRows:
    """Rows of a teacher's cache; what needs fitting is fitted to ``first_unit``."""

    teacher: Teacher
    first_unit: PackedUnit
    ranks: RankTable

    def spec(self, config: CacheTeacherConfig) -> tuple[CacheSpec, SharedFiles]:
        """The spec of a cache with these settings, and the files that its shards share."""
        corpus = make_spec(min(LEVELS), self.ranks).corpus
        asked = identity.make_spec(config, self.teacher.source.spec, corpus, self.ranks.sha256)
        return fit_all(asked, self.ranks, _Fit(self.teacher, self.first_unit))

    def make(
        self, packed: PackedUnit, spec: CacheSpec, shared: SharedFiles, config: CacheTeacherConfig
    ) -> list[Row]:
        """The rows of ``packed``, as they are given to the codec."""
        step = TeacherStep(self.teacher, spec, config, shared)
        rows: list[Row] = []
        for first in range(0, len(packed.token_ids_RT), _ROWS_PER_FORWARD):
            batch = packed.rows(first, first + _ROWS_PER_FORWARD)
            rows += step.launch(batch, 1, first).rows()
        return rows


@dataclass(frozen=True)
class _Fit:
    """See ``stages.cache_teacher.setup.fitted``."""

    teacher: Teacher
    packed: PackedUnit

    def projection(self, spec: CacheSpec) -> NoReturn:
        raise AssertionError("no sketch is asked for")

    def transform(self, spec: CacheSpec) -> tuple[CodedStates, HiddenTransform]:
        max_kl = spec.targets.states.max_kl
        return fit_transform(self.teacher, self.packed, max_kl, _ROWS_PER_FORWARD)

    def moment(self, spec: CacheSpec) -> tuple[TailMoment, MomentTransform]:
        return fit_moment(self.teacher, self.packed, spec.targets, _ROWS_PER_FORWARD)


def cells_of(row: Row, spec: CacheSpec, shared: SharedFiles) -> dict[str, bytes]:
    """The binary columns of a row."""
    encoded = encode_row(row, spec, shared)
    return {name: cell for name, cell in encoded.items() if isinstance(cell, bytes)}


def halves(packed: PackedUnit) -> tuple[PackedUnit, PackedUnit]:
    """What a transform is fitted to, and what is measured."""
    middle = len(packed.token_ids_RT) // 2
    return packed.rows(0, middle), packed.rows(middle, 2 * middle)
