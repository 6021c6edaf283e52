"""All corpora of a cache as one sequence of units: mostly one corpus, or several that take turns.

In: the settings, and the cache's spec, which has the order. Out: units by their number in the
cache. The sequence ends where the first corpus lacks a unit whose turn it is.
"""

from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import replace

from cache_format.metadata.spec import CacheSpec
from cache_format.metadata.spec_parts.corpus import CorpusShare, CorpusSpec
from stages.cache_teacher.config import CacheTeacherConfig
from stages.cache_teacher.corpus.units import Corpus, UnitDocuments, resolve_corpus
from stages.cache_teacher.corpus_settings import token_shares

Described = CorpusSpec | tuple[CorpusShare, ...]
"""What a cache's spec says of its corpus, or of its corpora."""


class Corpora:
    """The corpora of a cache, whose order is not known yet."""

    def __init__(self, each: Mapping[str | None, Corpus], weights: tuple[float, ...]) -> None:
        """``each`` has the corpora by their names; one alone has the name None."""
        self.each = each
        self.weights = weights

    @property
    def is_mixed(self) -> bool:
        """Whether there are several."""
        return len(self.each) > 1

    def described(self, units: tuple[int, ...] | None = None) -> Described:
        """The corpora as they are in a spec; ``units`` are those of each in one period of the
        order, and one each where they are not known yet."""
        if not self.is_mixed:
            (corpus,) = self.each.values()
            return corpus.spec
        return tuple(
            CorpusShare(name=str(name), weight=weight, units=number, corpus=corpus.spec)
            for (name, corpus), weight, number in zip(
                self.each.items(), self.weights, units or (1,) * len(self.each), strict=True
            )
        )

    def in_order(self, spec: CacheSpec) -> "CorpusUnits":
        """Their units, in the order of ``spec``."""
        return CorpusUnits(self, spec)

    def close(self) -> None:
        """Close the files that are open."""
        for corpus in self.each.values():
            corpus.close()


class CorpusUnits:
    """The units of a cache; for any number of threads."""

    def __init__(self, corpora: Corpora, spec: CacheSpec) -> None:
        self._each, self._is_mixed = tuple(corpora.each.items()), corpora.is_mixed
        self._spec = spec

    def has_unit(self, unit: int) -> bool:
        """Whether there are all units up to ``unit``; opens files, and so checks them, only as far
        as needed."""
        return self.ended_before(unit) is None

    def ended_before(self, unit: int) -> tuple[str | None, int] | None:
        """A corpus that lacks a unit before ``unit`` or that one: its name, and the number of the
        first unit that it lacks or a later one; None where none does."""
        counts = self._spec.unit_order.counts(unit + 1)
        for (name, corpus), count in zip(self._each, counts, strict=True):
            if count and not corpus.has_unit(count - 1):
                return name, count - 1
        return None

    def likely_num_units(self) -> int:
        """How many there are, if files that were not opened yet are like those that were."""
        shares = self._spec.unit_order.shares
        numbers = [
            corpus.likely_num_units() * sum(shares) // share
            for (_, corpus), share in zip(self._each, shares, strict=True)
        ]
        return min(numbers)

    def read_unit(self, unit: int) -> UnitDocuments | None:
        """Documents of ``unit``; None where the sequence has ended. See ``Corpus.read_unit``."""
        if not self.has_unit(unit):
            return None
        place = self._spec.place_of(unit)
        name, corpus = self._each[place.corpus]
        documents = corpus.read_unit(place.number)
        if documents is None or not self._is_mixed:
            return documents
        return replace(documents, position=f"{name}: {documents.position}")


@contextmanager
def open_corpora(config: CacheTeacherConfig) -> Iterator[Corpora]:
    """``resolve_corpora``, closed at the end. Raises ValueError where one holds no documents,
    too."""
    with closing(resolve_corpora(config)) as corpora:
        for (name, corpus), settings in zip(
            corpora.each.items(), config.each_corpus.values(), strict=True
        ):
            if not corpus.has_unit(0):
                called = "" if name is None else f" ({name})"
                raise ValueError(
                    f"corpus {settings.corpus!r}{called}: holds no documents. Give one with text."
                )
        yield corpora


def resolve_corpora(config: CacheTeacherConfig) -> Corpora:
    """Find the files of each corpus and pin them. Raises ValueError as ``resolve_corpus`` does."""
    each = {name: resolve_corpus(settings) for name, settings in config.each_corpus.items()}
    weights = (1.0,) if config.corpora is None else tuple(token_shares(config.corpora))
    return Corpora(each, weights)
