"""The directory of a cache's teacher, which a person names or the Hub has.

In: a directory or a Hub id, and an open cache. Out: the directory; whether its weights are the
cache's is checked where they are used.
"""

from pathlib import Path

from cache_format.reader import Cache
from stages.cache_teacher.config import CacheTeacherConfig
from stages.cache_teacher.teacher.locate import local_directory
from stages.model_files.tokenizer_files import READ_FILES


def find_teacher_directory(place: str, cache: Cache) -> Path:
    """``place`` itself or, of a Hub id, a copy of the commit that ``cache`` was made with.

    Raises ValueError where there is neither.
    """
    directory = local_directory(place)
    if directory is not None:
        return directory
    from stages.cache_teacher.corpus.hub import model_snapshot

    revision = cache.spec.teacher.revision or "main"
    return model_snapshot(CacheTeacherConfig(teacher=place, teacher_revision=revision), READ_FILES)
