"""What is fitted to a corpus's first unit before it is begun, and its place in the spec.

Principal components of a ``pca`` sketch, the transform of ``hidden`` targets, and what the tail's
moments are taken in; and of several corpora, how often it is the turn of each. A spec is asked for
before they are known; a cache that was begun knows them.
"""

from dataclasses import replace
from typing import Protocol

from cache_format.metadata.spec import CacheSpec
from cache_format.metadata.spec_parts.targets import CodedStates, TailMoment, TargetSpec
from cache_format.tables.hidden_transform import HiddenTransform
from cache_format.tables.principal_components import Projection, projection_sha256
from cache_format.tables.shared_files import SharedFiles
from cache_format.tables.tail_moment import MomentTransform
from cache_format.tables.vocabulary_ranks import RankTable


class Fit(Protocol):
    """Makes what a spec lacks."""

    def projection(self, spec: CacheSpec) -> Projection:
        """The principal components of a ``pca`` sketch."""

    def transform(self, spec: CacheSpec) -> tuple[CodedStates, HiddenTransform]:
        """The transform of ``hidden`` targets, and what the spec says of it."""

    def moment(self, spec: CacheSpec) -> tuple[TailMoment, MomentTransform]:
        """What the tail's moments are taken in, and what the spec says of it."""


def fit_all(spec: CacheSpec, ranks: RankTable, fit: Fit) -> tuple[CacheSpec, SharedFiles]:
    """Fit what ``spec`` asks for; returns it with what was found, and the cache's shared files."""
    projection, transform, moment = None, None, None
    if spec.sketch.kind == "pca":
        projection = fit.projection(spec)
        sha256 = projection_sha256(projection)
        spec = replace(spec, sketch=replace(spec.sketch, projection_sha256=sha256))
    if spec.targets.hidden is not None:
        hidden, transform = fit.transform(spec)
        spec = replace(spec, targets=replace(spec.targets, hidden=hidden))
    if spec.targets.moment is not None:
        part, moment = fit.moment(spec)
        spec = replace(spec, targets=replace(spec.targets, moment=part))
    shared = SharedFiles(ranks=ranks, projection=projection, transform=transform, moment=moment)
    return spec, shared


def as_fitted(asked: CacheSpec, begun: CacheSpec) -> CacheSpec:
    """``asked`` with what was fitted for ``begun``, as far as both ask for the same kinds."""
    if asked.corpora is not None and begun.corpora is not None:
        measured = [share.units for share in begun.corpora]
        if len(measured) == len(asked.corpora):
            corpora = zip(asked.corpora, measured, strict=True)
            found = tuple(replace(share, units=units) for share, units in corpora)
            asked = replace(asked, corpora=found)
    if asked.sketch.kind == begun.sketch.kind:
        sha256 = begun.sketch.projection_sha256
        asked = replace(asked, sketch=replace(asked.sketch, projection_sha256=sha256))
    if asked.targets.hidden is not None and begun.targets.hidden is not None:
        wanted = asked.targets.hidden
        hidden = replace(
            begun.targets.hidden, max_kl=wanted.max_kl, quantization=wanted.quantization
        )
        asked = replace(asked, targets=replace(asked.targets, hidden=hidden))
    if _has_same_moment(asked.targets, begun.targets):
        asked = replace(asked, targets=replace(asked.targets, moment=begun.targets.moment))
    return asked


def _has_same_moment(asked: TargetSpec, begun: TargetSpec) -> bool:
    """Whether both have moments of as many numbers, so that one transform would do for both."""
    if asked.moment is None or begun.moment is None:
        return False
    sizes = [
        (targets.tail_moment.dim, len(targets.inverse_temperatures)) for targets in (asked, begun)
    ]
    return sizes[0] == sizes[1]
