"""Create a cache, or open one that was already started.

In: the settings, the teacher's files, the corpus. Out: the cache opened for writing, and what it is
made with.
"""

from dataclasses import dataclass
from pathlib import Path

from cache_format.errors import SpecMismatchError
from cache_format.metadata.principal_components import Projection
from cache_format.metadata.spec import CacheSpec
from cache_format.writer import CacheWriter
from stages.cache_teacher.config import CacheTeacherConfig
from stages.cache_teacher.corpus.unit_reader import UnitReader
from stages.cache_teacher.corpus.units import Corpus
from stages.cache_teacher.setup.identity import Identity, identify
from stages.cache_teacher.setup.pca import principal_components
from stages.cache_teacher.teacher.lazy_teacher import LazyTeacher
from stages.compute.device import current_device

_ROWS_OF_FIT = 4
"""Rows in a forward pass for principal components, which keeps whole hidden states."""


@dataclass(frozen=True, kw_only=True)
class CacheOpener:
    """What a cache is begun with."""

    config: CacheTeacherConfig
    out: Path | str
    corpus: Corpus
    teacher: LazyTeacher
    """Loaded here only for principal components of a new cache."""

    def identity(self) -> Identity:
        """What the cache is, or will be; nothing is written."""
        return identify(self.config, self.teacher.source, self.corpus, self.out, self._fit)

    def open(self, identity: Identity) -> tuple[CacheWriter, Identity]:
        """The cache, created if there is none, and what it is."""
        try:
            return self._create_or_open(identity), identity
        except SpecMismatchError:
            if identity.projection is None:
                raise
            # Another worker has begun the cache meanwhile. Its principal components may differ from
            # ours in their last bits, and count; whatever else differs is refused here.
            identity = self.identity()
            return self._create_or_open(identity), identity

    def _create_or_open(self, identity: Identity) -> CacheWriter:
        return CacheWriter.create_or_open(
            self.out, identity.spec, identity.ranks, identity.projection
        )

    def _fit(self, spec: CacheSpec) -> Projection:
        prepared = UnitReader(self.corpus, self.teacher.source.document_tokenizer, spec).read(0)
        assert prepared is not None, "the corpus has a first unit"
        teacher = self.teacher.load()
        with current_device(teacher.device):
            return principal_components(
                teacher,
                prepared.packed,
                spec.sketch.hidden_states,
                spec.sketch.dim,
                self.config.rows_per_forward or _ROWS_OF_FIT,
            )
