"""Targets of a batch whose rows come from several caches of one kind.

What a cache fits to its first unit, such as the transform of hidden states, is another in each
cache. So each decodes its own rows; what comes out means the same in all, and is joined.

R rows of a batch, T positions, P of them scored.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from cache_format.reader import Cache
from stages.train_student.data.targets.dense_targets import DenseTargets
from stages.train_student.data.targets.kind import BatchTargets, HeadOnDevice, TargetDecoder
from stages.train_student.data.targets.kinds import kind_of
from stages.train_student.data.targets.sparse_targets import SparseTargets
from stages.train_student.data.teacher_files import teacher_head


@dataclass(frozen=True, kw_only=True)
class PartTargets:
    """Those of consecutive rows that come from one cache."""

    source: int
    """The number of the cache."""
    first_row: int
    num_scored: int
    """Positions; known before the batch goes to a device, so that nothing there is waited for."""
    targets: BatchTargets


@dataclass(frozen=True)
class MixedTargets:
    """The targets of a batch, part after part."""

    parts: tuple[PartTargets, ...]
    num_positions: int
    """T"""

    def mapped(self, function: Callable[[Tensor], Tensor]) -> "MixedTargets":
        """The same with each tensor as ``function`` returns it."""
        parts = (replace(part, targets=part.targets.mapped(function)) for part in self.parts)
        return replace(self, parts=tuple(parts))


@dataclass(frozen=True)
class MixedDecoder:
    """A ``TargetDecoder`` made of one for each cache."""

    decoders: tuple[TargetDecoder, ...]

    def __call__(self, targets: MixedTargets, scored_P: Tensor) -> SparseTargets | DenseTargets:
        """See ``TargetDecoder``; ``scored_P`` are all scored positions of the batch."""
        sizes = [part.num_scored for part in targets.parts]
        found = [
            self.decoders[part.source](part.targets, own - part.first_row * targets.num_positions)
            for part, own in zip(targets.parts, torch.split(scored_P, sizes), strict=True)
        ]
        return joined(found)


def make_decoders(caches: Sequence[Cache], head: HeadOnDevice) -> tuple[TargetDecoder, ...]:
    """The decoder of each cache, all of them of one teacher and kind."""
    first = caches[0]
    if len(caches) > 1 and first.spec.targets.hidden is not None:
        # The teacher's head is the same in all: each decoder is given the one that is there.
        head = replace(head, frozen_VD=head.place(teacher_head(first)))
    kind = kind_of(first.spec.targets)
    return tuple(kind.make_decoder(cache, head) for cache in caches)


def joined(parts: Sequence[SparseTargets | DenseTargets]) -> SparseTargets | DenseTargets:
    """The targets of ``parts``, all of one class, one after another."""
    first = parts[0]
    if len(parts) == 1:
        return first
    if isinstance(first, DenseTargets):
        dense = [part for part in parts if isinstance(part, DenseTargets)]
        kept = [part.kept for part in dense if part.kept is not None]
        return replace(
            first,
            hidden_ND=torch.cat([part.hidden_ND for part in dense]),
            kept=_joined_sparse(kept) if kept else None,
        )
    return _joined_sparse([part for part in parts if isinstance(part, SparseTargets)])


def _joined_sparse(parts: Sequence[SparseTargets]) -> SparseTargets:
    """What is not of a position is the same in all: mixed caches agree in it."""
    samples = [part.samples for part in parts if part.samples is not None]
    moments = [part.moments for part in parts if part.moments is not None]
    return replace(
        parts[0],
        kept_ids_NK=torch.cat([part.kept_ids_NK for part in parts]),
        gaps_NK=torch.cat([part.gaps_NK for part in parts]),
        tail_log_mass_NM=torch.cat([part.tail_log_mass_NM for part in parts]),
        samples=replace(
            samples[0],
            ids_NJ=torch.cat([sample.ids_NJ for sample in samples]),
            counts_NJ=torch.cat([sample.counts_NJ for sample in samples]),
            gaps_NJ=torch.cat([sample.gaps_NJ for sample in samples]),
        )
        if samples
        else None,
        moments=replace(
            moments[0], coefficients_NJ=torch.cat([moment.coefficients_NJ for moment in moments])
        )
        if moments
        else None,
    )
