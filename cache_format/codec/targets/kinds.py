"""The kinds of target by the name that a spec has for them. A new one is registered here."""

from collections.abc import Mapping

from cache_format.codec.targets import hidden, sampled, top_k, top_k_hidden, top_k_sampled
from cache_format.codec.targets.kind import TargetKind
from cache_format.codec.targets.tail_moment import WithTailMoment
from cache_format.metadata.spec import CacheSpec

TARGET_KINDS: Mapping[str, TargetKind] = {
    "top_k": top_k,
    "sampled": sampled,
    "top_k+sampled": top_k_sampled,
    "hidden": hidden,
    "top_k+hidden": top_k_hidden,
}


def kind_of(spec: CacheSpec) -> TargetKind:
    """The kind of a cache's targets, with the tail's moments if it has them."""
    kind = TARGET_KINDS[spec.targets.kind]
    return kind if spec.targets.moment is None else WithTailMoment(kind)
