"""Turn a unit's documents into rows of token ids: all work on a unit that needs no teacher.

In: the corpus and the teacher's tokenizer. Out: a ``PreparedUnit`` by number, or only how many
tokens it holds.
"""

import threading
from dataclasses import dataclass

from cache_format.metadata.spec import CacheSpec
from stages.cache_teacher.corpus.document_tokenizer import DocumentTokenizer
from stages.cache_teacher.corpus.packing import PackedUnit, pack
from stages.cache_teacher.corpus.units import Corpus


@dataclass(frozen=True, kw_only=True)
class PreparedUnit:
    """A unit that has been read, tokenised and packed."""

    unit: int
    packed: PackedUnit
    num_documents: int
    num_skipped_documents: int
    corpus_position: str

    @property
    def num_tokens(self) -> int:
        """Positions of its rows."""
        num_rows, num_ids = self.packed.token_ids_RT.shape
        return int(num_rows * (num_ids - 1))


class Stopped(Exception):
    """Raised in the threads that another one's failure has stopped."""


class UnitReader:
    """Reads units, in any order and for any number of threads, of which one at a time reads."""

    def __init__(self, corpus: Corpus, tokenizer: DocumentTokenizer, spec: CacheSpec) -> None:
        self.corpus = corpus
        self._tokenizer, self._spec = tokenizer, spec
        self._lock = threading.Lock()  # a tokenizer serves one thread at a time
        self._num_tokens: dict[int, int] = {}
        self._is_stopped = False

    def stop(self) -> None:
        """Read nothing more, in whatever thread."""
        self._is_stopped = True

    def read(self, unit: int) -> PreparedUnit | None:
        """The rows of ``unit``; None where the corpus has ended before it.

        Raises ValueError naming file and document where one is not text, and Stopped after
        ``stop``.
        """
        teacher = self._spec.teacher
        with self._lock:
            if self._is_stopped:
                raise Stopped
            documents = self.corpus.read_unit(unit)
            if documents is None:
                return None
            ids = self._tokenizer.encode(documents.texts)
        prepared = PreparedUnit(
            unit=unit,
            packed=pack(ids, teacher.eos_token_id, self._spec.sequence_length),
            num_documents=len(documents.texts),
            num_skipped_documents=documents.num_skipped,
            corpus_position=documents.position,
        )
        self._num_tokens[unit] = prepared.num_tokens
        return prepared

    def num_tokens(self, unit: int) -> int:
        """Positions of ``unit``, read once; 0 where the corpus has ended before it."""
        if unit not in self._num_tokens:
            prepared = self.read(unit)
            return 0 if prepared is None else prepared.num_tokens
        return self._num_tokens[unit]
