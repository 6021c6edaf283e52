"""Create a cache, or open one that was already started.

In: the settings, the teacher's files, the corpora. Out: the cache opened for writing, and what it
is made with.
"""

from dataclasses import dataclass
from pathlib import Path

from cache_format.errors import SpecMismatchError
from cache_format.writer import CacheWriter
from stages.cache_teacher.config import CacheTeacherConfig
from stages.cache_teacher.corpus.corpora import Corpora
from stages.cache_teacher.setup.first_unit import FirstUnit
from stages.cache_teacher.setup.identity import Identity, identify
from stages.cache_teacher.teacher.lazy_teacher import LazyTeacher


@dataclass(frozen=True, kw_only=True)
class CacheOpener:
    """What a cache is begun with."""

    config: CacheTeacherConfig
    out: Path | str
    corpora: Corpora
    teacher: LazyTeacher
    """Loaded here only where something is fitted for a new cache."""

    def identity(self) -> Identity:
        """What the cache is, or will be; nothing is written."""
        fit = FirstUnit(self.config, self.corpora, self.teacher)
        return identify(self.config, self.teacher.source, self.corpora, self.out, fit)

    def open(self, identity: Identity) -> tuple[CacheWriter, Identity]:
        """The cache, created if there is none, and what it is."""
        try:
            return self._create_or_open(identity), identity
        except SpecMismatchError:
            if not identity.shared.is_fitted:
                raise
            # Another worker has begun the cache meanwhile. What it fitted may differ from ours in
            # its last bits, and counts; whatever else differs is refused here.
            identity = self.identity()
            return self._create_or_open(identity), identity

    def _create_or_open(self, identity: Identity) -> CacheWriter:
        return CacheWriter.create_or_open(self.out, identity.spec, identity.shared)
