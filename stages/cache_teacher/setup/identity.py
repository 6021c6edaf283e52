"""Which cache a run asks for: its spec, and the files that are part of it.

In: the settings, the teacher and the corpus. Out: a spec, whose hash is the cache's identity, the
table of ids, and the matrix of principal components if there is one. A cache that was begun has
both already, so that only a new one counts tokens and runs the teacher for them.
"""

from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from cache_format.errors import CorruptFileError, MissingFileError
from cache_format.metadata.principal_components import (
    Projection,
    projection_sha256,
    read_projection,
)
from cache_format.metadata.spec import CacheSpec
from cache_format.metadata.spec_parts.corpus import CorpusSpec
from cache_format.metadata.spec_parts.sketch import SketchSpec
from cache_format.metadata.spec_parts.teacher import TeacherSpec
from cache_format.metadata.vocabulary_ranks import RankTable, read_ranks
from cache_format.storage.base import Storage
from cache_format.storage.open import storage_at
from cache_format.writer import begun_spec, require_same_spec
from stages.cache_teacher.config import CacheTeacherConfig
from stages.cache_teacher.corpus.token_frequencies import rank_table
from stages.cache_teacher.corpus.units import Corpus
from stages.cache_teacher.target_settings import SETTINGS_OF_KINDS

if TYPE_CHECKING:
    from stages.cache_teacher.teacher.teacher_files import TeacherSource

FitProjection = Callable[[CacheSpec], Projection]
"""The principal components of the first unit's hidden states, for a spec that lacks their hash."""

_NOT_FITTED = "0" * 64


@dataclass(frozen=True, kw_only=True, eq=False)
class Identity:
    """What is in a cache before its first shard."""

    spec: CacheSpec
    ranks: RankTable
    projection: Projection | None


def identify(
    config: CacheTeacherConfig,
    source: "TeacherSource",
    corpus: Corpus,
    out: Path | str,
    fit: FitProjection,
) -> Identity:
    """The spec that ``config`` asks for, and what belongs to it; ``fit`` is called for a new cache.

    Raises SpecMismatchError if ``out`` is a cache of another spec, ForeignDirectoryError if it
    holds something else.
    """
    storage = storage_at(out)
    begun = begun_spec(storage)
    if begun is None:
        ranks = rank_table(_tokenized(corpus, source), source.spec.vocab_size)
        spec = make_spec(config, source.spec, corpus.spec, ranks.sha256)
        return _with_projection(spec, ranks, fit)
    spec = make_spec(config, source.spec, corpus.spec, begun.targets.ranks_sha256)
    if spec.sketch.kind == begun.sketch.kind == "pca":
        spec = _with_hash(spec, begun.sketch.projection_sha256)
    require_same_spec(storage, spec, begun)
    return Identity(
        spec=spec,
        ranks=_ranks_of(storage, spec, corpus, source),
        projection=_projection_of(storage, spec, fit),
    )


def make_spec(
    config: CacheTeacherConfig, teacher: TeacherSpec, corpus: CorpusSpec, ranks_sha256: str
) -> CacheSpec:
    """The identity of the cache that ``config`` asks for; the budget is no part of it.

    Of principal components, the hash is not known yet: it is zeros.
    """
    return CacheSpec(
        teacher=teacher,
        corpus=corpus,
        targets=SETTINGS_OF_KINDS[config.targets].make_spec(config, ranks_sha256),
        sketch=_sketch_spec(config),
        sequence_length=config.sequence_length,
        validation_every=config.validation_every,
        validation_split="rows" if config.validation_split == "rows" else None,
        seed=config.seed,
    )


def _sketch_spec(config: CacheTeacherConfig) -> SketchSpec:
    if config.hidden_projection == "none":
        return SketchSpec(kind="none", dim=0, dtype="int8")
    return SketchSpec(
        kind=config.hidden_projection,
        dim=config.hidden_projection_dim,
        dtype=config.hidden_projection_dtype,
        hidden_states=config.hidden_states,
        projection_sha256=_NOT_FITTED if config.hidden_projection == "pca" else None,
    )


def _with_projection(spec: CacheSpec, ranks: RankTable, fit: FitProjection) -> Identity:
    if spec.sketch.kind != "pca":
        return Identity(spec=spec, ranks=ranks, projection=None)
    projection = fit(spec)
    spec = _with_hash(spec, projection_sha256(projection))
    return Identity(spec=spec, ranks=ranks, projection=projection)


def _with_hash(spec: CacheSpec, sha256: str | None) -> CacheSpec:
    return replace(spec, sketch=replace(spec.sketch, projection_sha256=sha256))


def _ranks_of(
    storage: Storage, spec: CacheSpec, corpus: Corpus, source: "TeacherSource"
) -> RankTable:
    with suppress(CorruptFileError, MissingFileError):  # then it is made again
        return read_ranks(storage, spec)
    return rank_table(_tokenized(corpus, source), source.spec.vocab_size)


def _projection_of(storage: Storage, spec: CacheSpec, fit: FitProjection) -> Projection | None:
    """The matrix of a cache that was begun; one that is lost is fitted again.

    Raises MissingFileError or CorruptFileError where that gives another one.
    """
    with suppress(CorruptFileError, MissingFileError):
        return read_projection(storage, spec)
    projection = fit(spec)
    if projection_sha256(projection) == spec.sketch.projection_sha256:
        return projection
    return read_projection(storage, spec)  # whoever began the cache may have written it by now


def _tokenized(corpus: Corpus, source: "TeacherSource") -> Iterator[npt.NDArray[np.int32]]:
    """The token ids of every document from the first one on."""
    for unit in count():
        documents = corpus.read_unit(unit)
        if documents is None:
            return
        yield from source.document_tokenizer.encode(documents.texts)
