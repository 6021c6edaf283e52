"""What can be refused before torch and transformers are imported, which takes long.

In: the settings, and the place of the cache. Out: nothing, or the error that the stage itself would
raise after them. The stage checks all of it again, and more.
"""

from dataclasses import replace
from pathlib import Path

from cache_format.metadata.spec import CacheSpec
from cache_format.metadata.spec_parts.corpus import CorpusSpec
from cache_format.storage.open import storage_at
from cache_format.writer import begun_spec
from stages.cache_teacher.config import CacheTeacherConfig
from stages.cache_teacher.corpus.corpora import Described
from stages.cache_teacher.corpus.units import check_local_corpora
from stages.cache_teacher.corpus_settings import token_shares
from stages.cache_teacher.setup.fitted import as_fitted
from stages.cache_teacher.setup.identity import make_spec
from stages.cache_teacher.setup.setting_names import require_same_settings
from stages.cache_teacher.target_settings import NOT_FITTED
from stages.cache_teacher.teacher.locate import local_directory


def check_early(config: CacheTeacherConfig, out: Path | str | None = None) -> None:
    """Raise ValueError for a teacher or corpus that is not there, CacheError for a wrong ``out``.

    Nothing is written, and nothing asked of the Hub; an ``out`` at a URL is looked at.
    """
    local_directory(config.teacher)
    check_local_corpora(config)
    if out is None:
        return
    storage = storage_at(out)
    begun = begun_spec(storage)
    # Where there are more corpora or fewer, the stage says what differs.
    if begun is not None and len(begun.each_corpus) == len(config.each_corpus):
        require_same_settings(storage, _asked_for(config, begun), begun)


def _asked_for(config: CacheTeacherConfig, begun: CacheSpec) -> CacheSpec:
    """The spec that ``config`` asks for, if teacher and corpora are those of ``begun``."""
    teacher = replace(
        begun.teacher,
        dtype=_unless_auto(config.teacher_dtype, begun.teacher.dtype),
        attention=_unless_auto(config.attention, begun.teacher.attention),
        chat_template_sha256=_template_of(config, begun),
    )
    each = [
        _asked_of_corpus(settings, corpus)
        for settings, corpus in zip(config.each_corpus.values(), begun.each_corpus, strict=True)
    ]
    described: Described = each[0]
    if begun.corpora is not None and config.corpora is not None:
        described = tuple(
            replace(share, name=entry.name, weight=weight, corpus=corpus)
            for share, entry, weight, corpus in zip(
                begun.corpora, config.corpora, token_shares(config.corpora), each, strict=True
            )
        )
    return as_fitted(make_spec(config, teacher, described, begun.ranks_sha256), begun)


def _asked_of_corpus(settings: CacheTeacherConfig, begun: CorpusSpec) -> CorpusSpec:
    return replace(
        begun,
        text_column=settings.text_column,
        on_bad_document=settings.on_bad_document,
        documents_per_unit=settings.documents_per_unit,
        chat=settings.chat,
    )


def _template_of(config: CacheTeacherConfig, begun: CacheSpec) -> str | None:
    """The template of ``begun``; nobody has looked yet at that of another cache's teacher."""
    if not config.has_conversations:
        return None
    return begun.teacher.chat_template_sha256 or NOT_FITTED


def _unless_auto(asked: str, found: str) -> str:
    return found if asked == "auto" else asked
