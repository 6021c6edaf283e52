"""Ids drawn from the whole distribution, with their counts (RS-KD, arXiv 2503.16870).

C positions of a chunk, P of a forward pass, V vocabulary, M samples; n ids of all positions.
"""

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from cache_format.codec.row_codec import Row
from cache_format.metadata.spec_parts.targets import TargetSpec
from cache_format.tables.shared_files import SharedFiles
from stages.cache_teacher.corpus.packing import PackedUnit
from stages.cache_teacher.targets.difference import Difference
from stages.cache_teacher.targets.id_rows import Ids, counted, rows_of_ids
from stages.cache_teacher.targets.logit_blocks import blocks_of
from stages.cache_teacher.targets.sampling import draw
from stages.cache_teacher.targets.target_maker import IdTargets, TargetMaker
from stages.cache_teacher.targets.teacher_head import Head


def num_uniform(spec: TargetSpec) -> int:
    """One for each sample."""
    return spec.sampling.num_draws


def make_maker(
    head: Head,
    spec: TargetSpec,
    shared: SharedFiles,
    *,
    chunk: int,
    compile: Literal["auto", "on", "off"],
) -> TargetMaker:
    """See ``TargetKind.make_maker``."""
    del shared
    return TargetMaker(head, partial(reduce, spec=spec), chunk=chunk, compile=compile)


def reduce(
    logits_CV: Tensor, labels_C: Tensor, uniform_CM: Tensor, *, spec: TargetSpec
) -> tuple[Tensor, ...]:
    """The fields of ``IdTargets`` for the positions of a chunk: nothing is kept."""
    s = spec.sampling.inverse_temperature
    inverse_temperatures = tuple(sorted({s, 1.0}))
    blocks = blocks_of(logits_CV, inverse_temperatures)
    z_max_C1 = blocks.largest_C1()
    label_gap_C1 = z_max_C1 - logits_CV.gather(1, labels_C[:, None])
    log_z_C1 = blocks.at(len(inverse_temperatures) - 1).log_mass((1.0,)) - z_max_C1
    at_s = inverse_temperatures.index(s), s
    samples_CM = draw(logits_CV, blocks, None, uniform_CM, at_s).sort(1).values
    none_C, none_C0 = torch.zeros_like(labels_C, dtype=torch.int32), z_max_C1[:, :0]
    return (
        log_z_C1[:, 0],
        (-label_gap_C1 - log_z_C1)[:, 0],
        none_C,
        none_C0.int(),
        none_C0,
        none_C0,
        samples_CM.int(),
        none_C0,
    )


def rows(batch: PackedUnit, targets: IdTargets) -> list[Row]:
    """See ``TargetKind.rows``."""
    ids = with_counts(targets.sample_ids_PM.numpy())
    ids_B = ids.spread(batch.scored_RT())
    tail_P1 = np.full((len(ids.num_P), 1), -np.inf, np.float32)  # samples leave nothing out
    made = rows_of_ids(batch, ids_B, tail_P1, targets.next_logprob_P.numpy())
    return [
        replace(row, kept_ids=replace(row.kept, counts=ids.counts))
        for row, ids in zip(made, ids_B, strict=True)
    ]


def with_counts(samples_PM: npt.NDArray[np.int32]) -> Ids:
    """Samples as ids with counts, the most drawn first, then the lowest; ``samples_PM`` rises."""
    num_P, ids, counts = counted(samples_PM)
    position = np.repeat(np.arange(len(num_P)), num_P)
    order = np.lexsort((ids, -counts, position))
    counts = counts[order]
    most_P = counts[(np.cumsum(num_P, dtype=np.int64) - num_P)]
    gaps = np.log(most_P[position] / counts).astype(np.float32)
    return Ids(num_P.astype(np.uint16), ids[order], gaps, counts.astype(np.uint16))


def differences(stored: Row, made: Row, spec: TargetSpec, number: int) -> Iterator[Difference]:
    """None: near ties may be drawn either way."""
    del stored, made, spec, number
    return iter(())
