"""Which cache a run asks for: its spec, and the table of ids that is part of it.

In: the settings, the teacher and the corpus. Out: a spec, whose hash is the cache's identity, and
the table. Called by ``run`` before anything is written. A cache that was begun has its table
already, so that only a new one counts tokens.
"""

from collections.abc import Iterator
from contextlib import suppress
from itertools import count
from pathlib import Path

import numpy as np
import numpy.typing as npt

from cache_format.errors import CorruptFileError, MissingFileError
from cache_format.ranks import RankTable, read_ranks
from cache_format.spec import CacheSpec, CorpusSpec, SketchSpec, TargetSpec, TeacherSpec
from cache_format.storage import storage_at
from cache_format.writer import begun_spec, require_same_spec
from stages.cache_teacher.config import CacheTeacherConfig
from stages.cache_teacher.corpus import Corpus
from stages.cache_teacher.packing import tokenize
from stages.cache_teacher.ranks import rank_table
from stages.cache_teacher.teacher_files import TeacherSource


def identify(
    config: CacheTeacherConfig, source: TeacherSource, corpus: Corpus, out: Path | str
) -> tuple[CacheSpec, RankTable]:
    """The spec that ``config`` asks for, and its table.

    Raises SpecMismatchError if ``out`` is a cache of another spec, ForeignDirectoryError if it
    holds something else.
    """
    storage = storage_at(out)
    begun = begun_spec(storage)
    if begun is not None:
        spec = make_spec(config, source.spec, corpus.spec, begun.targets.ranks_sha256)
        require_same_spec(storage, spec, begun)
        with suppress(CorruptFileError, MissingFileError):  # then it is made again
            return spec, read_ranks(storage, spec)
    ranks = rank_table(_tokenized(corpus, source), source.spec.vocab_size)
    return make_spec(config, source.spec, corpus.spec, ranks.sha256), ranks


def make_spec(
    config: CacheTeacherConfig, teacher: TeacherSpec, corpus: CorpusSpec, ranks_sha256: str
) -> CacheSpec:
    """The identity of the cache that ``config`` asks for; the budget is no part of it."""
    return CacheSpec(
        teacher=teacher,
        corpus=corpus,
        targets=TargetSpec(
            top_k=config.top_k,
            keep_mass=config.keep_mass,
            inverse_temperatures=config.inverse_temperatures,
            num_levels=config.num_levels,
            ranks_sha256=ranks_sha256,
        ),
        sketch=SketchSpec(
            kind=config.sketch,
            dim=config.sketch_dim if config.sketch != "none" else 0,
            dtype=config.sketch_dtype if config.sketch != "none" else "int8",
        ),
        sequence_length=config.sequence_length,
        validation_every=config.validation_every,
        seed=config.seed,
    )


def _tokenized(corpus: Corpus, source: TeacherSource) -> Iterator[npt.NDArray[np.int32]]:
    """The token ids of every document from the first one on."""
    for unit in count():
        documents = corpus.read_unit(unit)
        if documents is None:
            return
        yield from tokenize(source.tokenizer, documents.texts, source.spec.vocab_size)
