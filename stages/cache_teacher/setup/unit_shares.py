"""How often the units of a cache are of each of its corpora: of the shares of tokens asked for.

In: several corpora, and a spec that does not know yet. Out: the units of each in one period of the
order. A unit is a number of documents, whose lengths differ from corpus to corpus: so the first
units of each are read and packed to see how many tokens one has. That is a pure function of the
corpora and the tokenizer, and done once: from then on the order is in the cache's spec.
"""

from bisect import bisect_right
from collections.abc import Sequence
from typing import NamedTuple

from cache_format.metadata.interleaving import Interleaving, interleaving
from cache_format.metadata.spec import CacheSpec
from cache_format.metadata.spec_parts.corpus import LONGEST_PERIOD
from stages.cache_teacher.corpus.corpora import Corpora
from stages.cache_teacher.corpus.token_frequencies import ENOUGH_TOKENS
from stages.cache_teacher.corpus.unit_reader import Tokenizers, UnitReader
from stages.cache_teacher.corpus.units import Corpus

_MOST_UNITS = 64


def unit_shares(corpora: Corpora, tokenizers: Tokenizers, spec: CacheSpec) -> tuple[int, ...]:
    """Units of each corpus in one period, as near to the shares of tokens as ``LONGEST_PERIOD``
    units allow. Raises ValueError where a corpus fills no row, would hardly ever have its turn, or
    would have none before another one ends.
    """
    reader = UnitReader(corpora, tokenizers, spec)
    looks = [_look(str(name), corpus, reader, spec) for name, corpus in corpora.each.items()]
    weights = [weight / look.mean for weight, look in zip(corpora.weights, looks, strict=True)]
    _require_turns(weights, looks)
    order = interleaving(weights, LONGEST_PERIOD)
    _require_turn_before_any_ends(order, looks)
    return order.shares


class _Look(NamedTuple):
    """What the first units of a corpus tell of it."""

    name: str
    mean: float
    """Tokens of a unit."""
    num_units: int | None
    """All that there are; None where not all were looked at."""


def _look(name: str, corpus: Corpus, reader: UnitReader, spec: CacheSpec) -> _Look:
    num_tokens = num_units = 0
    has_ended = False
    while num_tokens < ENOUGH_TOKENS and num_units < _MOST_UNITS:
        documents = corpus.read_unit(num_units)
        if documents is None:
            has_ended = True
            break
        num_tokens += reader.prepare(num_units, documents, corpus.spec).num_tokens
        num_units += 1
    if not num_tokens:
        raise ValueError(
            f"corpora: {name}: none of its first {num_units} units fills a row of "
            f"{spec.sequence_length} tokens, so its share cannot be kept. Raise its "
            "documents_per_unit, or lower sequence_length."
        )
    return _Look(name, num_tokens / num_units, num_units if has_ended else None)


def _require_turns(weights: Sequence[float], looks: Sequence[_Look]) -> None:
    for weight, look in zip(weights, looks, strict=True):
        if weight * LONGEST_PERIOD < sum(weights):
            raise ValueError(
                f"corpora: {look.name}: so little of it is asked for that less than 1 in "
                f"{LONGEST_PERIOD:,} units would be of it, which has {look.mean:,.0f} tokens a "
                "unit. Lower its documents_per_unit, or raise its share."
            )


def _require_turn_before_any_ends(order: Interleaving, looks: Sequence[_Look]) -> None:
    """The cache ends where the first corpus lacks a unit: by then, there must be some of each."""
    for number, look in enumerate(looks):
        if look.num_units is None:
            continue
        last = (look.num_units + 1) * sum(order.shares)  # it has a turn in every period

        def num_turns(place: int, number: int = number) -> int:
            return order.counts(place + 1)[number]

        end = bisect_right(range(last), look.num_units, key=num_turns)
        for other, count in zip(looks, order.counts(end), strict=True):
            if not count:
                few = "only 1 unit" if look.num_units == 1 else f"only {look.num_units} units"
                raise ValueError(
                    f"corpora: {look.name}: has {few} of {look.mean:,.0f} tokens, and the cache "
                    f"would end with it before the first unit of {other.name}. Give it more "
                    "documents, or a smaller share."
                )
