"""One entry of ``corpora``: a corpus among several, what it is called and how much of it there is.

In: a table of a recipe. Out: the settings of the corpus, checked. What an entry leaves out is as in
the table around it. Imports nothing heavy.
"""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from fractions import Fraction
from typing import Any, Literal

from cache_format.metadata.spec_parts.corpus import (
    NAME_RULE,
    LongConversations,
    TrainOn,
    is_corpus_name,
)

_OWN = ("name", "weight", "tokens")


@dataclass(frozen=True, kw_only=True)
class CorpusSettings:
    """A corpus among several. All but the first three are as in ``CacheTeacherConfig``."""

    name: str
    """What receipts, ``inspect`` and metrics call it."""
    weight: float | None = None
    """Its share of the tokens, relative to the others' weights."""
    tokens: int | None = None
    """Its share as a number of tokens; the budget is then the sum, unless num_tokens is larger."""
    corpus: str | None = None
    corpus_config: str | None = None
    corpus_split: str | None = None
    corpus_data_files: tuple[str, ...] | None = None
    corpus_revision: str | None = None
    text_column: str | None = None
    text_documents: Literal["line", "paragraph", "file"] | None = None
    messages_column: str | None = None
    prompt_column: str | None = None
    completion_column: str | None = None
    train_on: TrainOn | None = None
    long_conversations: LongConversations | None = None
    on_bad_document: Literal["error", "skip"] | None = None
    documents_per_unit: int | None = None

    def __post_init__(self) -> None:
        if not is_corpus_name(self.name):
            raise ValueError(f"name: must be {NAME_RULE}, found {self.name!r}")
        for key in ("weight", "tokens"):
            value = getattr(self, key)
            if value is not None and not 0 < value < math.inf:
                raise ValueError(f"{self.name}: {key}: must be above 0 and finite, found {value:g}")
        if (self.weight is None) == (self.tokens is None):
            found = "neither" if self.weight is None else "both"
            raise ValueError(f"{self.name}: must have either weight or tokens, found {found}")

    @property
    def changes(self) -> Mapping[str, Any]:
        """What of the table around it is otherwise for this corpus."""
        given = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in _OWN}
        return {key: value for key, value in given.items() if value is not None}


def check_corpora(corpora: Sequence[CorpusSettings]) -> None:
    """Raise ValueError where entries do not go together."""
    if len(corpora) < 2:
        raise ValueError(
            f"corpora: must be two or more, found {len(corpora)}. For one, set corpus instead"
        )
    for name, count in Counter(entry.name for entry in corpora).items():
        if count > 1:
            raise ValueError(f"corpora: {name}: {count} entries have this name; give each its own")
    with_weight = [entry.name for entry in corpora if entry.weight is not None]
    if 0 < len(with_weight) < len(corpora):
        lacking = next(entry.name for entry in corpora if entry.weight is None)
        raise ValueError(
            f"corpora: {with_weight[0]} has a weight and {lacking} a number of tokens; give all of "
            "them the one or the other"
        )


def token_shares(corpora: Sequence[CorpusSettings]) -> list[float]:
    """The share of the tokens that each is to have; they add up to 1, but for rounding."""
    asked = [Fraction(repr(entry.weight or float(entry.tokens or 0))) for entry in corpora]
    return [float(one / sum(asked)) for one in asked]


def total_tokens(corpora: Sequence[CorpusSettings]) -> int | None:
    """The sum of their numbers of tokens; None where they have weights."""
    numbers = [entry.tokens for entry in corpora if entry.tokens is not None]
    return sum(numbers) if len(numbers) == len(corpora) else None
