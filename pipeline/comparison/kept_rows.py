"""A teacher's rows with one setting of targets, as they come out of a cache.

N positions, V vocabulary, D width.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from cache_format.codec.row_codec import decode_row
from cache_format.codec.targets.kinds import kind_of
from cache_format.metadata.spec import CacheSpec
from cache_format.tables.shared_files import SharedFiles
from pipeline.comparison.kept_distribution import TargetsAt, targets_of
from pipeline.comparison.self_kl import self_kl
from pipeline.comparison.teacher_rows import MadeRows, ShownRows, TeacherRows
from stages.cache_teacher.config import CacheTeacherConfig


@dataclass(frozen=True)
class Keeping:
    """Makes the rows of a cache with one setting of targets."""

    source: TeacherRows
    config: CacheTeacherConfig
    spec: CacheSpec
    shared: SharedFiles

    @classmethod
    def fitted(cls, source: TeacherRows, config: CacheTeacherConfig) -> "Keeping":
        """With what the targets of ``config`` need fitted."""
        return cls(source, config, *source.spec(config))

    def rows(self, shown: ShownRows, unit: int = 1) -> "KeptRows":
        """The rows of ``shown``, with what is drawn for ``unit``."""
        made = self.source.make(shown, (self.spec, self.shared), self.config, unit)
        return KeptRows(self, shown, made)


@dataclass(frozen=True)
class KeptRows:
    """Rows, before and after the codec."""

    keeping: Keeping
    shown: ShownRows
    made: MadeRows

    @property
    def bytes_per_token(self) -> float:
        """Of the targets alone."""
        columns: Sequence[str] = kind_of(self.keeping.spec).COLUMNS
        return self.made.num_bytes(columns) / self.shown.num_tokens

    def targets_at(self, head_VD: Tensor) -> TargetsAt:
        """What the loss gets of the rows once they are decoded."""
        spec, shared = self.keeping.spec, self.keeping.shared
        decoded = [
            decode_row(cells, row.document_starts, spec, shared)
            for cells, row in zip(self.made.cells, self.made.rows, strict=True)
        ]
        return targets_of(decoded, spec, shared, head_VD)

    def self_kl(self, head_VD: Tensor, num_positions: int) -> list[float | None]:
        """See ``self_kl.self_kl``."""
        states_PD, targets = self.shown.scored_states(), self.keeping.spec.targets
        return self_kl(states_PD, head_VD, self.targets_at(head_VD), targets, num_positions)
