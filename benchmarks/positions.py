"""Positions with a teacher's largest logits, to measure the cache with.

From a file with the fields of a logits file (below), or, without one, from the demo's teacher over
the demo's documents.

A logits file is safetensors: ``logits`` [P, ≥ 128] falling, ``ids`` of the same shape, ``log_z_t1``
and ``log_z_t2`` [P] over the whole vocabulary at temperatures 1 and 2, ``label`` [P].
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from cache_format.codec.row import KeptIds, Row
from cache_format.metadata.spec import CacheSpec
from cache_format.metadata.spec_parts.corpus import CorpusSpec
from cache_format.metadata.spec_parts.sketch import SketchSpec
from cache_format.metadata.spec_parts.targets import KeptLogits, TargetSpec
from cache_format.metadata.spec_parts.teacher import TeacherSpec
from cache_format.tables.vocabulary_ranks import RankTable
from pipeline.comparison.compared import LEVELS

if TYPE_CHECKING:
    from stages.cache_teacher.corpus.document_tokenizer import DocumentTokenizer
    from stages.cache_teacher.corpus.packing import PackedUnit
    from stages.cache_teacher.teacher.teacher import Teacher

QWEN_VOCABULARY = 151_936
SEQUENCE_LENGTH = 512
NODES = (0.5, 1.0)
_DOCUMENTS_AT_ONCE = 16


@dataclass(frozen=True)
class Positions:
    """P positions; the arrays of a logits file."""

    logits: NDArray[np.float64]
    ids: NDArray[np.int32]
    log_z: NDArray[np.float64]
    """[P, 2], at temperatures 2 and 1."""
    label: NDArray[np.int32]
    vocab_size: int
    corpus_ranks: RankTable | None
    """The table that a cache of the same corpus has, where the corpus is known."""

    def __len__(self) -> int:
        return len(self.label)

    def slice(self, start: int, stop: int) -> "Positions":
        """Positions ``start`` to ``stop``."""
        return Positions(
            self.logits[start:stop],
            self.ids[start:stop],
            self.log_z[start:stop],
            self.label[start:stop],
            self.vocab_size,
            self.corpus_ranks,
        )

    def logprobs(self, top_k: int) -> NDArray[np.float64]:
        """Exact log-probabilities of the kept ids at temperature 1, [P, top_k]."""
        return self.logits[:, :top_k] - self.log_z[:, 1:]

    def tail_log_mass(self, top_k: int) -> NDArray[np.float64]:
        """Exact log Σ exp((z − z_max)·s) over the ids that are not kept, [P, 2]."""
        relative = self.logits[:, :top_k] - self.logits[:, :1]
        tails = []
        for node, s in enumerate(NODES):
            log_all = self.log_z[:, node] - s * self.logits[:, 0]
            log_kept = np.log(np.exp(relative * s).sum(1))
            left_out = np.maximum(-np.expm1(np.minimum(log_kept - log_all, 0)), 1e-12)
            tails.append(log_all + np.log(left_out))
        return np.stack(tails, 1)

    def kept_weights(self) -> NDArray[np.int64]:
        """How often each id is among the largest logits here, [V]."""
        return np.bincount(self.ids.reshape(-1), minlength=self.vocab_size)


def read_logits(path: Path) -> Positions:
    """The positions in a logits file over Qwen's vocabulary."""
    from safetensors.numpy import load_file

    fields = load_file(path)
    log_z = np.stack([fields["log_z_t2"], fields["log_z_t1"]], 1).astype(np.float64)
    logits, ids = fields["logits"].astype(np.float64), fields["ids"]
    vocab_size = max(QWEN_VOCABULARY, int(ids.max()) + 1)
    return Positions(logits, ids, log_z, fields["label"], vocab_size, None)


def demo_teacher(
    num_rows: int, num_documents: int = 800
) -> tuple["Teacher", "PackedUnit", RankTable]:
    """The demo's teacher, ``num_rows`` × 512 positions to show it, and the documents' ranks."""
    return load_teacher(None, None, num_rows, num_documents)


def load_teacher(
    directory: Path | None, corpus: Path | None, num_rows: int, num_documents: int = 800
) -> tuple["Teacher", "PackedUnit", RankTable]:
    """The teacher in ``directory``, by default the demo's, and the beginning of ``corpus``, by
    default the demo's documents: ``num_rows`` × 512 positions, if there are so many, and the
    documents' ranks.
    """
    import torch

    from pipeline.demo.run import TEACHER
    from stages.cache_teacher.config import CacheTeacherConfig
    from stages.cache_teacher.corpus.packing import pack
    from stages.cache_teacher.corpus.token_frequencies import ENOUGH_TOKENS, rank_table
    from stages.cache_teacher.teacher.teacher import Teacher
    from stages.cache_teacher.teacher.teacher_files import resolve_teacher

    config = CacheTeacherConfig(teacher=str(directory or TEACHER), teacher_dtype="float32")
    source = resolve_teacher(config)
    num_tokens = max(ENOUGH_TOKENS, num_rows * SEQUENCE_LENGTH + 1)
    token_ids = _encoded(source.document_tokenizer, _texts(corpus, num_documents), num_tokens)
    packed = pack(token_ids, source.spec.eos_token_id, SEQUENCE_LENGTH)
    ranks = rank_table(token_ids, source.spec.vocab_size)
    return Teacher(source, torch.device("cpu")), packed.rows(0, num_rows), ranks


def _encoded(
    tokenizer: "DocumentTokenizer", texts: Iterator[str], num_tokens: int
) -> list[NDArray[np.int32]]:
    """Token ids of the first texts that together have ``num_tokens``, and of a few more; or of
    all."""
    token_ids: list[NDArray[np.int32]] = []
    while sum(map(len, token_ids)) < num_tokens:
        if not (some := list(islice(texts, _DOCUMENTS_AT_ONCE))):
            break
        token_ids += tokenizer.encode(some)
    return token_ids


def _texts(corpus: Path | None, num_documents: int) -> Iterator[str]:
    """The first documents of a corpus, or of the demo's."""
    from pipeline.demo.corpus import documents
    from stages.cache_teacher.config import CacheTeacherConfig
    from stages.cache_teacher.corpus.units import resolve_corpus

    if corpus is None:
        return (document.text for document in islice(documents("demo"), num_documents))
    config = CacheTeacherConfig(corpus=str(corpus), documents_per_unit=num_documents)
    read = resolve_corpus(config).read_unit(0)
    assert read is not None, "a corpus has a first unit"
    return iter(read.texts)


def teacher_positions(teacher: "Teacher", packed: "PackedUnit", ranks: RankTable) -> Positions:
    """The positions of these rows, and the rank table of their corpus."""
    import torch

    parts = []
    for row in range(len(packed.token_ids_RT)):
        one = packed.rows(row, row + 1)
        hidden_BTD, _ = teacher.forward(one.token_ids_RT[:, :-1], one.document_starts, layers=())
        logits_TV = teacher.head.logits(hidden_BTD[0])
        values, ids = logits_TV.topk(256)
        log_z = torch.stack([torch.logsumexp(logits_TV * s, 1) for s in NODES], 1)
        parts.append((values.numpy(), ids.numpy(), log_z.numpy(), one.token_ids_RT[0, 1:]))
    logits, ids_all, log_z_all, label = (np.concatenate(part) for part in zip(*parts, strict=True))
    return Positions(
        logits.astype(np.float64),
        ids_all.astype(np.int32),
        log_z_all.astype(np.float64),
        label.astype(np.int32),
        teacher.source.spec.vocab_size,
        ranks,
    )


def demo_positions(num_rows: int) -> Positions:
    """``num_rows`` × 512 positions of the demo's teacher, and the rank table of its corpus."""
    return teacher_positions(*demo_teacher(num_rows))


def corpus_ranks(corpus: Path, tokenizer: Path) -> RankTable:
    """The table that a cache of ``corpus`` would have."""
    from stages.cache_teacher.config import CacheTeacherConfig
    from stages.cache_teacher.corpus.document_tokenizer import DocumentTokenizer
    from stages.cache_teacher.corpus.token_frequencies import ENOUGH_TOKENS, rank_table
    from stages.cache_teacher.corpus.units import resolve_corpus
    from stages.model_files.tokenizer_files import load_tokenizer

    documents = resolve_corpus(CacheTeacherConfig(corpus=str(corpus))).read_unit(0)
    assert documents is not None
    loaded = load_tokenizer(tokenizer)
    ids = DocumentTokenizer(loaded.backend_tokenizer, QWEN_VOCABULARY, loaded.eos_token_id)
    counted = ids.encode(documents.texts)
    if sum(map(len, counted)) < ENOUGH_TOKENS // 4:
        raise ValueError(f"{corpus}: too small to count ids in")
    return rank_table(counted, QWEN_VOCABULARY)


def make_spec(top_k: int, ranks: RankTable, sketch_dim: int = 0) -> CacheSpec:
    """The spec of a cache of ``top_k`` ids a position; its vocabulary is that of ``ranks``."""
    vocab_size = len(ranks.ids_by_rank)
    return CacheSpec(
        teacher=TeacherSpec(
            source="benchmark",
            revision="",
            weights_sha256="",
            tokenizer_sha256="",
            dtype="float32",
            attention="sdpa",
            hidden_size=64,
            num_layers=1,
            vocab_size=vocab_size,
            head_rows=vocab_size,
            eos_token_id=0,
        ),
        corpus=CorpusSpec(
            source="benchmark",
            config="",
            split="train",
            revision="",
            files=(),
            text_column="text",
            on_bad_document="error",
            documents_per_unit=1,
        ),
        targets=TargetSpec(
            kind="top_k",
            kept=KeptLogits(
                top_k=top_k,
                keep_mass=1.0,
                inverse_temperatures=NODES,
                num_levels=LEVELS[top_k],
            ),
        ),
        sketch=SketchSpec(kind="rademacher" if sketch_dim else "none", dim=sketch_dim),
        sequence_length=SEQUENCE_LENGTH,
        validation_every=2,
        seed=0,
        ranks_sha256=ranks.sha256,
    )


def make_rows(positions: Positions, top_k: int, sketch_dim: int = 0) -> Sequence[Row]:
    """The positions as rows of 512, every one scored; what fills no row is left out."""
    logprobs, tail = positions.logprobs(top_k), positions.tail_log_mass(top_k)
    gaps = (logprobs[:, :1] - logprobs).astype(np.float32)
    is_label = positions.ids == positions.label[:, None]
    exact = (np.where(is_label, positions.logits, 0).sum(1)) - positions.log_z[:, 1]
    # A label that is not in the file gets an even share of what the kept ids leave over.
    share = logprobs[:, 0] + tail[:, 1] - np.log(positions.vocab_size - top_k)
    next_logprob = np.where(is_label.any(1), exact, share).astype(np.float32)
    random = np.random.default_rng(0)
    rows = []
    for start in range(0, len(positions) - SEQUENCE_LENGTH + 1, SEQUENCE_LENGTH):
        span = slice(start, start + SEQUENCE_LENGTH)
        sketch = random.normal(size=(SEQUENCE_LENGTH, 1, sketch_dim)).astype(np.float32)
        rows.append(
            Row(
                token_ids=np.append(positions.label[start - 1 : start], positions.label[span])
                if start
                else np.append([0], positions.label[span]).astype(np.int32),
                document_starts=np.empty(0, np.int32),
                kept_ids=KeptIds(
                    num_ids=np.full(SEQUENCE_LENGTH, top_k, np.uint16),
                    ids=positions.ids[span, :top_k].reshape(-1),
                    gaps=gaps[span].reshape(-1),
                    tail_log_mass=tail[span].astype(np.float32),
                    next_logprob=next_logprob[span],
                ),
                sketch=sketch if sketch_dim else None,
            )
        )
    return rows
