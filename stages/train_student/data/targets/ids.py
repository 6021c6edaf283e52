"""Convert targets that list ids to tensors: ragged rows become rectangular.

R rows of a batch, T positions, P of them scored, K kept ids, J drawn ids, M inverse temperatures,
C coefficients of moments.
"""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from cache_format.codec.row_codec import Row
from cache_format.metadata.spec_parts.targets import TargetSpec
from cache_format.reader import Cache
from stages.train_student.data.targets.kind import HeadOnDevice, TargetDecoder
from stages.train_student.data.targets.moment_tables import moment_tables
from stages.train_student.data.targets.sparse_targets import SparseSamples, SparseTargets
from stages.train_student.data.targets.tail_moment import MomentTables, TailMoments


@dataclass(frozen=True, kw_only=True)
class SampledIds:
    """Ids drawn from those that are not kept."""

    ids: Tensor
    """int64 [R, T, J]"""
    counts: Tensor
    """uint8 [R, T, J], how often each was drawn; 0 marks padding"""
    logit_gaps: Tensor
    """float32 [R, T, J], z_max − z_j in nats at T = 1"""

    def mapped(self, function: Callable[[Tensor], Tensor]) -> "SampledIds":
        """The same with each tensor as ``function`` returns it."""
        return SampledIds(
            ids=function(self.ids),
            counts=function(self.counts),
            logit_gaps=function(self.logit_gaps),
        )


@dataclass(frozen=True, kw_only=True)
class IdTargets:
    """Ids that are kept of each position, and the mass of the others."""

    kept_ids: Tensor
    """int64 [R, T, K]; a position with fewer than K repeats its first id"""
    logit_gaps: Tensor
    """float32 [R, T, K], z_max − z_j in nats at T = 1; +inf marks a repetition. Of samples drawn at
    T: T·log(largest count / count), so that softmax(−logit_gaps/T) = counts / samples"""
    tail_log_mass: Tensor
    """float32 [R, T, M]"""
    samples: SampledIds | None = None
    """Only where the cache has samples of the tail"""
    moment_coefficients: Tensor | None = None
    """int16 [R, T, C], only where the cache has the tail's moments"""

    def mapped(self, function: Callable[[Tensor], Tensor]) -> "IdTargets":
        """The same with each tensor as ``function`` returns it."""
        return IdTargets(
            kept_ids=function(self.kept_ids),
            logit_gaps=function(self.logit_gaps),
            tail_log_mass=function(self.tail_log_mass),
            samples=None if self.samples is None else self.samples.mapped(function),
            moment_coefficients=None
            if self.moment_coefficients is None
            else function(self.moment_coefficients),
        )


def kept_targets(rows: Sequence[Row], top_k: int, *, gap_scale: float = 1.0) -> IdTargets:
    """Ragged kept ids and gaps as [R, T, K]; what is missing repeats the first id at a gap of +inf.

    Gaps are multiplied by ``gap_scale``.
    """
    kept = [row.kept for row in rows]
    num_ids = np.stack([one.num_ids for one in kept]).astype(np.int64)
    is_kept = np.arange(top_k) < num_ids[:, :, None]
    gaps = np.full(is_kept.shape, np.inf, np.float32)
    gaps[is_kept] = np.concatenate([one.gaps for one in kept]) * np.float32(gap_scale)
    kept_ids = np.zeros(is_kept.shape, np.int64)
    kept_ids[is_kept] = np.concatenate([one.ids for one in kept])
    return IdTargets(
        kept_ids=torch.from_numpy(np.where(is_kept, kept_ids, kept_ids[:, :, :1])),
        logit_gaps=torch.from_numpy(gaps),
        tail_log_mass=torch.from_numpy(np.stack([one.tail_log_mass for one in kept])),
        moment_coefficients=_moment_coefficients(rows),
    )


def _moment_coefficients(rows: Sequence[Row]) -> Tensor | None:
    found = [row.moment_coefficients for row in rows if row.moment_coefficients is not None]
    return torch.from_numpy(np.stack(found)) if found else None


def make_sparse_decoder(cache: Cache, head: HeadOnDevice) -> TargetDecoder:
    """See ``TargetKind.make_decoder``; the teacher's head is needed for moments alone."""
    tables = moment_tables(cache, head)
    return functools.partial(sparse_targets, spec=cache.spec.targets, tables=tables)


def sparse_targets(
    targets: IdTargets, scored_P: Tensor, spec: TargetSpec, tables: MomentTables | None = None
) -> SparseTargets:
    """The distribution at the P scored positions, in the order of ``scored_P``; with the tail's
    moments if there are ``tables`` to rebuild them with."""
    # By index: a mask would make the host wait until the device has counted what is set in it.
    scored = targets.mapped(lambda tensor: tensor.flatten(0, 1).index_select(0, scored_P))
    samples = None
    if scored.samples is not None:
        samples = SparseSamples(
            scored.samples.ids,
            scored.samples.counts,
            scored.samples.logit_gaps,
            spec.sampling.inverse_temperature,
        )
    moments = None
    if tables is not None and scored.moment_coefficients is not None:
        moments = TailMoments(scored.moment_coefficients, tables)
    return SparseTargets(
        scored.kept_ids,
        scored.logit_gaps,
        scored.tail_log_mass,
        spec.inverse_temperatures,
        samples,
        moments,
    )
