"""The caches that one run learns from: mostly one, or several with weights.

In: open caches of one teacher. Out: what the parts of a run ask of them. ``mixable`` says which
caches can be mixed. Imports nothing heavy.
"""

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass

from cache_format.metadata.interleaving import interleaving
from cache_format.metadata.sealed_json import canonical_json
from cache_format.reader import Cache
from stages.train_student.data.teacher_weights import holds_weights

_LONGEST_LABEL = 40


@dataclass(frozen=True)
class CacheMixture:
    """One cache or several, in the order of their ids: that of the words typed changes nothing."""

    caches: tuple[Cache, ...]
    weights: tuple[float, ...] | None = None
    """How often rows are drawn from each, relative to the others; None: as it has rows. Always None
    of one cache."""

    @property
    def is_mixed(self) -> bool:
        """Whether there are several."""
        return len(self.caches) > 1

    @property
    def reference(self) -> Cache:
        """The one that the teacher's parts are taken from, which are the same in all: the first, or
        the first that holds all of its weights."""
        if not self.is_mixed:
            return self.caches[0]
        return next(filter(holds_weights, self.caches), self.caches[0])

    @property
    def cache_id(self) -> str:
        """That of the one cache; of several, a hash of their ids, whatever their weights."""
        if not self.is_mixed:
            return self.caches[0].cache_id
        return hashlib.sha256(canonical_json(self.cache_ids)).hexdigest()

    @property
    def cache_ids(self) -> list[str] | None:
        """Those of several caches; None of one."""
        return [cache.cache_id for cache in self.caches] if self.is_mixed else None

    def labels(self) -> tuple[str, ...]:
        """A name of each, for metrics: that of its directory, and its id where names repeat."""
        names = [_name_of(cache) for cache in self.caches]
        return tuple(
            name if names.count(name) == 1 else f"{name}-{cache.cache_id[:8]}"
            for name, cache in zip(names, self.caches, strict=True)
        )


def mixture_of(cache: Cache | CacheMixture) -> CacheMixture:
    """``cache`` as a mixture, of itself alone if it is one cache."""
    return cache if isinstance(cache, CacheMixture) else CacheMixture((cache,))


def mix(caches: Sequence[Cache], weights: Sequence[float] | None = None) -> CacheMixture:
    """A mixture of ``caches``; ``weights`` are relative, and None stands for their numbers of rows.

    Raises ValueError where a cache is given twice, where there are more or fewer weights than
    caches, and for weights that no rows can be divided by (see ``interleaving``).
    """
    if weights is not None:
        if len(weights) != len(caches):
            raise ValueError(f"{len(weights)} weights for {len(caches)} caches: give each one.")
        interleaving(weights)
    by_id: dict[str, Cache] = {}
    for cache in caches:
        other = by_id.setdefault(cache.cache_id, cache)
        if other is not cache:
            raise ValueError(
                f"{cache.path}: the same cache as {other.path} (both have the id "
                f"{cache.cache_id[:12]}…). Give it once, with the sum of the weights."
            )
    order = sorted(range(len(caches)), key=lambda number: caches[number].cache_id)
    return CacheMixture(
        tuple(caches[number] for number in order),
        None if weights is None or len(caches) == 1 else tuple(weights[n] for n in order),
    )


def _name_of(cache: Cache) -> str:
    """The last part of its location, without what would divide the name of a metric."""
    place = str(cache.path)
    name = (place if "://" in place else os.path.abspath(place)).rstrip("/").rpartition("/")[2]
    kept = (letter if letter.isalnum() or letter in "._-" else "-" for letter in name)
    return "".join(kept)[:_LONGEST_LABEL]
