"""Turn a unit's documents into rows of token ids: all work on a unit that needs no teacher.

In: the corpora and the teacher's tokenizers. Out: a ``PreparedUnit`` by number, or only how many
tokens it holds.
"""

import threading
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count
from typing import Protocol

from cache_format.metadata.receipt import ConversationCounts
from cache_format.metadata.spec import CacheSpec
from cache_format.metadata.spec_parts.corpus import ChatSpec, CorpusSpec
from stages.cache_teacher.corpus.chat.unit_conversations import ChatEncoder
from stages.cache_teacher.corpus.corpora import Corpora
from stages.cache_teacher.corpus.document_tokenizer import DocumentTokenizer, IntArray
from stages.cache_teacher.corpus.packing import PackedUnit, pack, pack_whole
from stages.cache_teacher.corpus.units import Corpus, UnitDocuments


class Tokenizers(Protocol):
    """What reads the text of a teacher."""

    @property
    def document_tokenizer(self) -> DocumentTokenizer:
        """Of plain text."""

    @property
    def chat_encoder(self) -> ChatEncoder:
        """Of conversations. Raises ValueError where the teacher has no template for them."""


@dataclass(frozen=True, kw_only=True)
class PreparedUnit:
    """A unit that has been read, tokenised and packed."""

    unit: int
    packed: PackedUnit
    num_documents: int
    num_skipped_documents: int
    corpus_position: str
    conversations: ConversationCounts | None = None
    """What became of conversations that are not in the rows as they are."""

    @property
    def num_tokens(self) -> int:
        """Positions of its rows."""
        num_rows, num_ids = self.packed.token_ids_RT.shape
        return int(num_rows * (num_ids - 1))


class Stopped(Exception):
    """Raised in the threads that another one's failure has stopped."""


class UnitReader:
    """Reads units, in any order and for any number of threads, of which one at a time reads."""

    def __init__(self, corpora: Corpora, tokenizers: Tokenizers, spec: CacheSpec) -> None:
        self.units = corpora.in_order(spec)
        self._tokenizers, self._spec = tokenizers, spec
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
        with self._lock:
            if self._is_stopped:
                raise Stopped
            documents = self.units.read_unit(unit)
            if documents is None:
                return None
            prepared = self.prepare(unit, documents, self._spec.corpus_of(unit))
        self._num_tokens[unit] = prepared.num_tokens
        return prepared

    def num_tokens(self, unit: int) -> int:
        """Positions of ``unit``, read once; 0 where the corpus has ended before it."""
        if unit not in self._num_tokens:
            prepared = self.read(unit)
            return 0 if prepared is None else prepared.num_tokens
        return self._num_tokens[unit]

    def prepare(self, unit: int, documents: UnitDocuments, corpus: CorpusSpec) -> PreparedUnit:
        """The rows of ``documents``, the unit with number ``unit``, of ``corpus``. For one thread
        at a time."""
        if corpus.chat is None:
            return self._of_texts(unit, documents)
        return self._of_conversations(unit, documents, corpus.chat)

    def _of_texts(self, unit: int, documents: UnitDocuments) -> PreparedUnit:
        ids = self._tokenizers.document_tokenizer.encode(documents.texts)
        return PreparedUnit(
            unit=unit,
            packed=pack(ids, self._spec.teacher.eos_token_id, self._spec.sequence_length),
            num_documents=len(documents.texts),
            num_skipped_documents=documents.num_skipped,
            corpus_position=documents.position,
        )

    def _of_conversations(
        self, unit: int, documents: UnitDocuments, chat: ChatSpec
    ) -> PreparedUnit:
        length = self._spec.sequence_length
        encoded = self._tokenizers.chat_encoder.encode_unit(documents, chat, length + 1)
        return PreparedUnit(
            unit=unit,
            packed=pack_whole(encoded.documents, self._spec.teacher.eos_token_id, length),
            num_documents=encoded.num_conversations,
            num_skipped_documents=documents.num_skipped + encoded.num_refused,
            corpus_position=documents.position,
            conversations=encoded.counts,
        )


def iter_token_ids(corpus: Corpus, tokenizers: Tokenizers) -> Iterator[IntArray]:
    """The token ids of every document from the first one on, however long."""
    chat = corpus.spec.chat
    for unit in count():
        documents = corpus.read_unit(unit)
        if documents is None:
            return
        if chat is None:
            yield from tokenizers.document_tokenizer.encode(documents.texts)
        else:
            encoded = tokenizers.chat_encoder.encode_unit(documents, chat, None)
            yield from (document.ids for document in encoded.documents)
