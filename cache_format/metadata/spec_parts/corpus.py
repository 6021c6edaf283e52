"""Which corpus a cache is of."""

import math
import re
from dataclasses import dataclass
from typing import Literal

from cache_format.metadata.spec_parts.bounds import require

TrainOn = Literal["assistant", "completion", "all"]
LongConversations = Literal["split", "drop", "error"]

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,39}", re.ASCII)
NAME_RULE = "1 to 40 letters, digits, '.', '-' or '_', the first a letter or a digit"
LONGEST_PERIOD = 2**12
"""The most units after which the order over several corpora repeats itself."""


@dataclass(frozen=True, kw_only=True)
class ChatSpec:
    """Where a corpus of conversations has them, and what becomes of them."""

    messages_column: str | None = None
    """Column of lists of messages; None where prompts and completions have columns of their own."""
    prompt_column: str | None = None
    """Column of prompts."""
    completion_column: str | None = None
    """Column of completions."""
    train_on: TrainOn
    """Whose tokens are scored: the assistant's, those of its last message or completion, or all."""
    long_conversations: LongConversations
    """What becomes of a conversation that does not fit in a row."""

    def __post_init__(self) -> None:
        pair = (self.prompt_column, self.completion_column)
        require(
            (self.messages_column is None and None not in pair)
            or (self.messages_column is not None and pair == (None, None)),
            "messages_column",
            self.messages_column,
            "a column, or left out beside prompt_column and completion_column",
        )

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns that are read."""
        names = (self.messages_column, self.prompt_column, self.completion_column)
        return tuple(name for name in names if name is not None)

    def setting_of(self, column: str) -> str:
        """The field that names ``column``."""
        fields = ("messages_column", "prompt_column", "completion_column")
        return next(field for field in fields if getattr(self, field) == column)


@dataclass(frozen=True, kw_only=True)
class CorpusSpec:
    """The documents, their order, and how they are cut into units."""

    source: str
    """Hub dataset id, or a name for local files."""
    config: str
    """Configuration of the Hub dataset."""
    split: str
    """Split of the Hub dataset."""
    revision: str
    """Commit on the Hub; empty for local files."""
    files: tuple[tuple[str, str], ...]
    """Name and SHA-256 of every file in reading order; no hash where the revision pins it."""
    text_column: str
    """Column that holds a document's text."""
    on_bad_document: str
    """What a document that is not text does."""
    documents_per_unit: int
    """Documents in one unit, hence in one shard."""
    text_documents: str | None = None
    """What a document is in plain text: ``paragraph`` or ``file``; None where it is a line, and for
    other kinds of file."""
    chat: ChatSpec | None = None
    """How conversations are read; None where documents are plain text."""

    def __post_init__(self) -> None:
        require(
            self.documents_per_unit >= 1, "documents_per_unit", self.documents_per_unit, "1 or more"
        )
        require(
            self.text_documents in (None, "paragraph", "file"),
            "text_documents",
            self.text_documents,
            "'paragraph' or 'file', or left out",
        )


@dataclass(frozen=True, kw_only=True)
class CorpusShare:
    """One of several corpora of a cache."""

    name: str
    """What people call it."""
    weight: float
    """The share of the cache's tokens that was asked for, relative to those of the others."""
    units: int
    """Its units in one period of the order, see ``CacheSpec.place_of``."""
    corpus: CorpusSpec

    def __post_init__(self) -> None:
        require(is_corpus_name(self.name), "name", self.name, NAME_RULE)
        require(0 < self.weight < math.inf, "weight", self.weight, "above 0 and finite")
        require(
            1 <= self.units <= LONGEST_PERIOD, "units", self.units, f"from 1 to {LONGEST_PERIOD}"
        )


def is_corpus_name(text: str) -> bool:
    """Whether a corpus may be called so, which is part of the names of metrics."""
    return _NAME.fullmatch(text) is not None
