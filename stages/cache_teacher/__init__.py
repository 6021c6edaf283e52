"""Stage one: a teacher reads a corpus once and writes its targets into a cache.

``from stages.cache_teacher import CacheTeacherConfig, cache_teacher``. The function, and torch
with it, is imported when it is first asked for.
"""

from typing import TYPE_CHECKING, Any

from stages.cache_teacher.config import CacheTeacherConfig
from stages.cache_teacher.corpus_settings import CorpusSettings

if TYPE_CHECKING:
    from stages.cache_teacher.run import cache_teacher

__all__ = ["CacheTeacherConfig", "CorpusSettings", "cache_teacher"]


def __getattr__(name: str) -> Any:
    if name != "cache_teacher":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from stages.cache_teacher.run import cache_teacher

    return cache_teacher
