"""Which cache a run asks for: its spec, and the files that are part of it.

In: the settings, the teacher and the corpora. Out: a spec, whose hash is the cache's identity, the
table of ids, and what is fitted to the first unit. A cache that was begun has all of it already, so
that only a new one counts tokens and runs the teacher for them.
"""

from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

from cache_format.errors import CorruptFileError, MissingFileError
from cache_format.metadata.spec import CacheSpec
from cache_format.metadata.spec_parts.corpus import CorpusSpec
from cache_format.metadata.spec_parts.sketch import SketchSpec
from cache_format.metadata.spec_parts.teacher import TeacherSpec
from cache_format.storage.base import Storage
from cache_format.storage.open import storage_at
from cache_format.tables.shared_files import (
    SharedFiles,
    read_moment,
    read_projection,
    read_ranks,
    read_transform,
)
from cache_format.tables.vocabulary_ranks import RankTable
from cache_format.writer import begun_spec
from stages.cache_teacher.config import CacheTeacherConfig
from stages.cache_teacher.corpus.corpora import Corpora, Described
from stages.cache_teacher.corpus.packing import IntArray
from stages.cache_teacher.corpus.token_frequencies import ENOUGH_TOKENS, rank_table
from stages.cache_teacher.corpus.unit_reader import iter_token_ids
from stages.cache_teacher.setup.fitted import Fit, as_fitted, fit_all
from stages.cache_teacher.setup.setting_names import require_same_settings
from stages.cache_teacher.setup.unit_shares import unit_shares
from stages.cache_teacher.target_settings import NOT_FITTED, SETTINGS_OF_KINDS

if TYPE_CHECKING:
    from stages.cache_teacher.teacher.teacher_files import TeacherSource


@dataclass(frozen=True, kw_only=True, eq=False)
class Identity:
    """What is in a cache before its first shard."""

    spec: CacheSpec
    shared: SharedFiles


def identify(
    config: CacheTeacherConfig,
    source: "TeacherSource",
    corpora: Corpora,
    out: Path | str,
    fit: Fit,
) -> Identity:
    """The spec that ``config`` asks for, and what belongs to it; ``fit`` is called for a new cache.

    Raises SpecMismatchError if ``out`` is a cache of another spec, ForeignDirectoryError if it
    holds something else.
    """
    storage = storage_at(out)
    begun = begun_spec(storage)
    if begun is None:
        ranks = ranks_of(corpora, source)
        spec = make_spec(config, source.spec, corpora.described(), ranks.sha256)
        spec = with_unit_shares(spec, corpora, source)
        spec, shared = fit_all(spec, ranks, fit)
        return Identity(spec=spec, shared=shared)
    spec = make_spec(config, source.spec, corpora.described(), begun.ranks_sha256)
    spec = as_fitted(spec, begun)
    require_same_settings(storage, spec, begun)
    ranks = _ranks_of(storage, spec, corpora, source)
    return Identity(spec=spec, shared=_shared_of(storage, spec, ranks, fit))


def make_spec(
    config: CacheTeacherConfig, teacher: TeacherSpec, corpora: Described, ranks_sha256: str
) -> CacheSpec:
    """The identity of the cache that ``config`` asks for; the budget is no part of it.

    What is fitted is not known yet: hashes are zeros. Raises ValueError where the teacher does not
    allow a setting.
    """
    if config.tail_moment_dim > teacher.hidden_size:
        raise ValueError(
            f"cache_teacher.tail_moment_dim: must be at most {teacher.hidden_size}, the width of "
            f"the teacher, found {config.tail_moment_dim}. Lower it: 16 directions hold most of "
            "what a tail's moments differ in."
        )
    return CacheSpec(
        teacher=teacher,
        corpus=corpora if isinstance(corpora, CorpusSpec) else None,
        corpora=None if isinstance(corpora, CorpusSpec) else corpora,
        targets=SETTINGS_OF_KINDS[config.targets].make_spec(config),
        sketch=_sketch_spec(config),
        sequence_length=config.sequence_length,
        validation_every=config.validation_every,
        validation_split=config.validation_split,
        seed=config.seed,
        ranks_sha256=ranks_sha256,
    )


def _sketch_spec(config: CacheTeacherConfig) -> SketchSpec:
    if config.hidden_projection == "none":
        return SketchSpec(kind="none", dim=0, dtype="int8")
    return SketchSpec(
        kind=config.hidden_projection,
        dim=config.hidden_projection_dim,
        dtype=config.hidden_projection_dtype,
        hidden_states=config.hidden_states,
        projection_sha256=NOT_FITTED if config.hidden_projection == "pca" else None,
    )


def _ranks_of(
    storage: Storage, spec: CacheSpec, corpora: Corpora, source: "TeacherSource"
) -> RankTable:
    with suppress(CorruptFileError, MissingFileError):  # then it is made again
        return read_ranks(storage, spec)
    return ranks_of(corpora, source)


def _shared_of(storage: Storage, spec: CacheSpec, ranks: RankTable, fit: Fit) -> SharedFiles:
    """The shared files of a cache that was begun; what is lost of them is fitted again.

    Raises MissingFileError or CorruptFileError where that gives something else.
    """
    with suppress(CorruptFileError, MissingFileError):
        return _read_shared(storage, spec, ranks)
    again, shared = fit_all(spec, ranks, fit)
    if again == spec:
        return shared
    return _read_shared(storage, spec, ranks)  # whoever began the cache may have written it by now


def _read_shared(storage: Storage, spec: CacheSpec, ranks: RankTable) -> SharedFiles:
    return SharedFiles(
        ranks=ranks,
        projection=read_projection(storage, spec),
        transform=read_transform(storage, spec),
        moment=read_moment(storage, spec),
    )


def ranks_of(corpora: Corpora, source: "TeacherSource") -> RankTable:
    """The table of ids that a new cache of these corpora has; each counts by its share."""
    documents = (iter_token_ids(corpus, source) for corpus in corpora.each.values())
    if corpora.is_mixed:
        shares = (round(weight * ENOUGH_TOKENS) for weight in corpora.weights)
        documents = (_first(own, share) for own, share in zip(documents, shares, strict=True))
    return rank_table(chain.from_iterable(documents), source.spec.vocab_size)


def with_unit_shares(spec: CacheSpec, corpora: Corpora, source: "TeacherSource") -> CacheSpec:
    """``spec`` with the order of units that a new cache of several corpora has."""
    if not corpora.is_mixed:
        return spec
    described = corpora.described(unit_shares(corpora, source, spec))
    assert not isinstance(described, CorpusSpec), "there are several"
    return replace(spec, corpora=described)


def _first(documents: Iterable[IntArray], num_tokens: int) -> Iterator[IntArray]:
    """The first so many tokens, or all: the last document is cut, for a long one would take the
    other corpora's shares."""
    for document in documents:
        yield document[:num_tokens]
        num_tokens -= len(document)
        if num_tokens <= 0:
            return
