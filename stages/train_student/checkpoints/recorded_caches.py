"""What ``run.json`` says of the caches of a run: what they are, how much of them it uses, where.

In: a mixture and how many shards of each a run began with. Out: that part of the run's identity,
and what differs between two of them, in words.
"""

import hashlib
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cache_format.metadata.spec import Split
from cache_format.reader import Cache
from stages.train_student.data.mixture import CacheMixture

CACHES = "caches"
"""The key of an identity that has the caches by their ids, where there are several."""
_NUMBERS = (
    *("num_train_shards", "num_validation_shards", "num_train_rows", "num_validation_rows"),
)
_SPLITS: tuple[Split, ...] = ("train", "validation")
_OF_ALL = {"cache_id", "shards_sha256", *_NUMBERS}

NumShards = Callable[[Cache], tuple[int, int]]
"""How many shards of a cache a run uses, for training and for validation."""


@dataclass(frozen=True, kw_only=True)
class RecordedCache:
    """One of several caches of a run."""

    cache_id: str
    label: str
    """What metrics call it, as long as the run lasts."""
    location: str
    """Where it lay when it was last used: an absolute path or a URL."""


def all_shards(cache: Cache) -> tuple[int, int]:
    """``NumShards`` of a run that begins."""
    return len(cache.shards("train")), len(cache.shards("validation"))


def shards_before(identity: Mapping[str, Any]) -> NumShards:
    """``NumShards`` of a run that began with ``identity``, whatever has been added since."""

    def num_shards(cache: Cache) -> tuple[int, int]:
        own = identity_of_cache(identity, cache.cache_id)
        return own.get("num_train_shards", 0), own.get("num_validation_shards", 0)

    return num_shards


def identity_of_cache(identity: Mapping[str, Any], cache_id: str) -> Mapping[str, Any]:
    """The part of ``identity`` that is of one of its caches; empty where it is not among them."""
    caches = identity.get(CACHES)
    if caches is None:
        return identity
    found: Mapping[str, Any] = caches.get(cache_id, {}) if isinstance(caches, dict) else {}
    return found


def identity_of_caches(mixture: CacheMixture, num_shards: NumShards) -> dict[str, Any]:
    """Ids, shards and rows; of several caches those of each, their weights, and sums over them."""
    each = [_identity(cache, num_shards(cache)) for cache in mixture.caches]
    if not mixture.is_mixed:
        return {"cache_id": mixture.cache_id} | each[0]
    hashes = "".join(own["shards_sha256"] for own in each)
    weights = mixture.weights or (None,) * len(each)
    caches = {
        cache.cache_id: own if weight is None else {"weight": weight} | own
        for cache, own, weight in zip(mixture.caches, each, weights, strict=True)
    }
    return {
        "cache_id": mixture.cache_id,
        **{name: sum(own[name] for own in each) for name in _NUMBERS},
        "shards_sha256": hashlib.sha256(hashes.encode()).hexdigest(),
        CACHES: caches,
    }


def _identity(cache: Cache, num_shards: tuple[int, int]) -> dict[str, Any]:
    chosen = {
        split: cache.shards(split)[:number]
        for split, number in zip(_SPLITS, num_shards, strict=True)
    }
    hashes = "".join(shard.sha256 for split in _SPLITS for shard in chosen[split])
    return {
        **{f"num_{split}_shards": len(chosen[split]) for split in _SPLITS},
        **{
            f"num_{split}_rows": sum(len(cache.rows_of(split, shard)) for shard in chosen[split])
            for split in _SPLITS
        },
        "shards_sha256": hashlib.sha256(hashes.encode()).hexdigest(),
    }


def mixing_differs(
    before: Mapping[str, Any],
    now: Mapping[str, Any],
    mixture: CacheMixture,
    recorded: Sequence[str],
) -> list[str]:
    """Which caches or weights of a run are not those that it began with, in words.

    ``recorded`` are the locations of its caches then. Empty where the run had and has one cache.
    """
    theirs, ours = before.get(CACHES), now.get(CACHES)
    if theirs is None and ours is None:
        return []
    if theirs is None or ours is None:
        return [f"it learns from {' and '.join(recorded)}, not from {_listed(mixture)}"]
    if theirs.keys() != ours.keys():
        lost = [key[:12] for key in theirs.keys() - ours.keys()]
        new = [str(c.path) for c in mixture.caches if c.cache_id not in theirs]
        return [
            f"its caches were {' and '.join(recorded)}",
            *(f"the cache with the id {key}… is not given" for key in lost),
            *(f"{place} is not one of them" for place in new),
        ]
    return [
        f"the weight of {cache.path} was {_weight(theirs[key])} and is {_weight(ours[key])}"
        for cache in mixture.caches
        if theirs[key := cache.cache_id].get("weight") != ours[key].get("weight")
    ]


def without_mixing(identity: Mapping[str, Any]) -> dict[str, Any]:
    """``identity`` without what ``mixing_differs`` is about, and what follows from it."""
    return {key: value for key, value in identity.items() if key not in {CACHES, *_OF_ALL}}


def recorded_caches(
    mixture: CacheMixture, before: Sequence[RecordedCache] | None = None
) -> tuple[RecordedCache, ...] | None:
    """Several caches as they are recorded, with the labels they had ``before``; None of one."""
    if not mixture.is_mixed:
        return None
    known = {cache.cache_id: cache.label for cache in before or ()}
    return tuple(
        RecordedCache(
            cache_id=cache.cache_id,
            label=known.get(cache.cache_id, label),
            location=location_of(cache),
        )
        for cache, label in zip(mixture.caches, mixture.labels(), strict=True)
    )


def location_of(cache: Cache) -> str:
    """Where ``cache`` lies, in a way that can be found from any directory."""
    place = str(cache.path)
    return place if "://" in place else os.path.abspath(place)


def _weight(own: Mapping[str, Any]) -> str:
    weight = own.get("weight")
    return "its number of rows" if weight is None else f"{weight:g}"


def _listed(mixture: CacheMixture) -> str:
    return " and ".join(str(cache.path) for cache in mixture.caches)
