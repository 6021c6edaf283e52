"""What is fitted to a cache's first unit before it is begun, and its place in the spec.

Principal components of a ``pca`` sketch, and the transform of ``hidden`` targets. A spec is asked
for before they are known; a cache that was begun knows them.
"""

from dataclasses import replace
from typing import Protocol

from cache_format.metadata.spec import CacheSpec
from cache_format.metadata.spec_parts.targets import CodedStates
from cache_format.tables.hidden_transform import HiddenTransform
from cache_format.tables.principal_components import Projection, projection_sha256
from cache_format.tables.shared_files import SharedFiles
from cache_format.tables.vocabulary_ranks import RankTable


class Fit(Protocol):
    """Makes what a spec lacks."""

    def projection(self, spec: CacheSpec) -> Projection:
        """The principal components of a ``pca`` sketch."""

    def transform(self, spec: CacheSpec) -> tuple[CodedStates, HiddenTransform]:
        """The transform of ``hidden`` targets, and what the spec says of it."""


def fit_all(spec: CacheSpec, ranks: RankTable, fit: Fit) -> tuple[CacheSpec, SharedFiles]:
    """Fit what ``spec`` asks for; returns it with what was found, and the cache's shared files."""
    projection, transform = None, None
    if spec.sketch.kind == "pca":
        projection = fit.projection(spec)
        sha256 = projection_sha256(projection)
        spec = replace(spec, sketch=replace(spec.sketch, projection_sha256=sha256))
    if spec.targets.hidden is not None:
        hidden, transform = fit.transform(spec)
        spec = replace(spec, targets=replace(spec.targets, hidden=hidden))
    return spec, SharedFiles(ranks=ranks, projection=projection, transform=transform)


def as_fitted(asked: CacheSpec, begun: CacheSpec) -> CacheSpec:
    """``asked`` with what was fitted for ``begun``, as far as both ask for the same kinds."""
    if asked.sketch.kind == begun.sketch.kind:
        sha256 = begun.sketch.projection_sha256
        asked = replace(asked, sketch=replace(asked.sketch, projection_sha256=sha256))
    if asked.targets.hidden is not None and begun.targets.hidden is not None:
        wanted = asked.targets.hidden
        hidden = replace(
            begun.targets.hidden, max_kl=wanted.max_kl, quantization=wanted.quantization
        )
        asked = replace(asked, targets=replace(asked.targets, hidden=hidden))
    return asked
