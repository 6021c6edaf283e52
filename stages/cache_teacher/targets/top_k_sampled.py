"""The k largest logits of a position as in ``top_k``, and ids drawn from the others.

C positions of a chunk, P of a forward pass, V vocabulary, M samples; n ids of all positions.
"""

from dataclasses import replace
from functools import partial
from typing import Literal

import numpy as np
from torch import Tensor

from cache_format.codec.row_codec import Row
from cache_format.codec.samples import TailSamples
from cache_format.metadata.spec_parts.targets import TargetSpec
from cache_format.tables.shared_files import SharedFiles
from stages.cache_teacher.corpus.packing import PackedUnit
from stages.cache_teacher.targets import top_k
from stages.cache_teacher.targets.coded.tail_moment import moment_maker
from stages.cache_teacher.targets.id_rows import Ids, counted, is_new
from stages.cache_teacher.targets.sampling import draw
from stages.cache_teacher.targets.target_maker import IdTargets, TargetMaker
from stages.cache_teacher.targets.teacher_head import Head

differences = top_k.differences


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
    moment = moment_maker(head, spec, shared, compile)
    reduction = partial(reduce, spec=spec)
    return TargetMaker(head, reduction, chunk=chunk, compile=compile, moment=moment)


def reduce(
    logits_CV: Tensor, labels_C: Tensor, uniform_CM: Tensor, *, spec: TargetSpec
) -> tuple[Tensor, ...]:
    """The fields of ``IdTargets`` for the positions of a chunk."""
    kept, s = top_k.keep_largest(logits_CV, labels_C, spec), spec.sampling.inverse_temperature
    at_s = spec.logits.inverse_temperatures.index(s), s
    samples_CM = draw(logits_CV, kept.rest, kept.last_key_C, uniform_CM, at_s).sort(1).values
    gaps_CM = kept.z_max_C1 - logits_CV.gather(1, samples_CM)
    return *kept.fields(), samples_CM.int(), gaps_CM


def rows(batch: PackedUnit, targets: IdTargets) -> list[Row]:
    """See ``TargetKind.rows``."""
    samples_B = _samples(targets).spread(batch.scored_RT())
    made = top_k.rows(batch, targets)
    return [
        replace(row, kept_ids=replace(row.kept, draws=_draws(ids)))
        for row, ids in zip(made, samples_B, strict=True)
    ]


def _samples(targets: IdTargets) -> Ids:
    """Samples of the tail, at the positions that have one."""
    has_tail_P = ~np.isneginf(targets.tail_log_mass_PN.numpy()[:, -1])
    samples_PM = targets.sample_ids_PM.numpy()[has_tail_P]
    num, ids, counts = counted(samples_PM)
    num_P = np.zeros(len(has_tail_P), np.uint16)
    num_P[has_tail_P] = num
    gaps = targets.sample_logit_gaps_PM.numpy()[has_tail_P][is_new(samples_PM)]
    return Ids(num_P, ids, gaps, counts.astype(np.uint16))


def _draws(ids: Ids) -> TailSamples:
    return TailSamples(num_ids=ids.num_P, ids=ids.ids, counts=ids.counts, gaps=ids.gaps)
