"""What can be refused before torch and transformers are imported, which takes long.

In: the settings, and the place of the cache. Out: nothing, or the error that the stage itself would
raise after them. The stage checks all of it again, and more.
"""

from dataclasses import replace
from pathlib import Path

from cache_format.metadata.spec import CacheSpec
from cache_format.storage.open import storage_at
from cache_format.writer import begun_spec, require_same_spec
from stages.cache_teacher.config import CacheTeacherConfig
from stages.cache_teacher.corpus.units import check_local_corpus
from stages.cache_teacher.setup.fitted import as_fitted
from stages.cache_teacher.setup.identity import make_spec
from stages.cache_teacher.target_settings import NOT_FITTED
from stages.cache_teacher.teacher.locate import local_directory


def check_early(config: CacheTeacherConfig, out: Path | str | None = None) -> None:
    """Raise ValueError for a teacher or corpus that is not there, CacheError for a wrong ``out``.

    Nothing is written, and nothing asked of the Hub; an ``out`` at a URL is looked at.
    """
    local_directory(config.teacher)
    check_local_corpus(config)
    if out is None:
        return
    storage = storage_at(out)
    begun = begun_spec(storage)
    if begun is not None:
        require_same_spec(storage, _asked_for(config, begun), begun)


def _asked_for(config: CacheTeacherConfig, begun: CacheSpec) -> CacheSpec:
    """The spec that ``config`` asks for, if teacher and corpus are those of ``begun``."""
    teacher = replace(
        begun.teacher,
        dtype=_unless_auto(config.teacher_dtype, begun.teacher.dtype),
        attention=_unless_auto(config.attention, begun.teacher.attention),
        chat_template_sha256=_template_of(config, begun),
    )
    corpus = replace(
        begun.corpus,
        text_column=config.text_column,
        on_bad_document=config.on_bad_document,
        documents_per_unit=config.documents_per_unit,
        chat=config.chat,
    )
    return as_fitted(make_spec(config, teacher, corpus, begun.ranks_sha256), begun)


def _template_of(config: CacheTeacherConfig, begun: CacheSpec) -> str | None:
    """The template of ``begun``; nobody has looked yet at that of another cache's teacher."""
    if config.chat is None:
        return None
    return begun.teacher.chat_template_sha256 or NOT_FITTED


def _unless_auto(asked: str, found: str) -> str:
    return found if asked == "auto" else asked
