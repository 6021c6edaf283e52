"""How often the units of a cache are of each of its corpora: of the shares of tokens asked for.

In: several corpora, and a spec that does not know yet. Out: the units of each in one period of the
order. A unit is a number of documents, whose lengths differ from corpus to corpus: so the first
units of each are read and packed to see how many tokens one has. That is a pure function of the
corpora and the tokenizer, and done once: from then on the order is in the cache's spec.
"""

from collections.abc import Sequence

from cache_format.metadata.interleaving import interleaving
from cache_format.metadata.spec import CacheSpec
from cache_format.metadata.spec_parts.corpus import LONGEST_PERIOD
from stages.cache_teacher.corpus.corpora import Corpora
from stages.cache_teacher.corpus.token_frequencies import ENOUGH_TOKENS
from stages.cache_teacher.corpus.unit_reader import Tokenizers, UnitReader
from stages.cache_teacher.corpus.units import Corpus

_MOST_UNITS = 64


def unit_shares(corpora: Corpora, tokenizers: Tokenizers, spec: CacheSpec) -> tuple[int, ...]:
    """Units of each corpus in one period, as near to the shares of tokens as ``LONGEST_PERIOD``
    units allow. Raises ValueError where a corpus fills no row, or would hardly ever have its turn.
    """
    reader = UnitReader(corpora, tokenizers, spec)
    sizes = [
        _tokens_per_unit(str(name), corpus, reader, spec) for name, corpus in corpora.each.items()
    ]
    weights = [weight / size for weight, size in zip(corpora.weights, sizes, strict=True)]
    _require_turns(list(map(str, corpora.each)), weights, sizes)
    return interleaving(weights, LONGEST_PERIOD).shares


def _tokens_per_unit(name: str, corpus: Corpus, reader: UnitReader, spec: CacheSpec) -> float:
    """A mean over its first units."""
    num_tokens = num_units = 0
    while num_tokens < ENOUGH_TOKENS and num_units < _MOST_UNITS:
        documents = corpus.read_unit(num_units)
        if documents is None:
            break
        num_tokens += reader.prepare(num_units, documents, corpus.spec).num_tokens
        num_units += 1
    if not num_tokens:
        raise ValueError(
            f"corpora: {name}: none of its first {num_units} units fills a row of "
            f"{spec.sequence_length} tokens, so its share cannot be kept. Raise its "
            "documents_per_unit, or lower sequence_length."
        )
    return num_tokens / num_units


def _require_turns(names: Sequence[str], weights: Sequence[float], sizes: Sequence[float]) -> None:
    for name, weight, size in zip(names, weights, sizes, strict=True):
        if weight * LONGEST_PERIOD < sum(weights):
            raise ValueError(
                f"corpora: {name}: so little of it is asked for that less than 1 in "
                f"{LONGEST_PERIOD:,} units would be of it, which has {size:,.0f} tokens a unit. "
                "Lower its documents_per_unit, or raise its share."
            )
