"""The k largest logits of a position, and the log-mass of all others at a few temperatures.

C positions of a chunk, P of a forward pass, V vocabulary, K kept, N inverse temperatures, M uniform
numbers, none here; B rows, T positions of a row.
"""

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from cache_format.codec.row_codec import Row
from cache_format.metadata.spec_parts.targets import TargetSpec
from cache_format.tables.shared_files import SharedFiles
from stages.cache_teacher.corpus.packing import PackedUnit
from stages.cache_teacher.targets.coded.tail_moment import moment_maker
from stages.cache_teacher.targets.difference import Difference
from stages.cache_teacher.targets.id_rows import Ids, rows_of_ids
from stages.cache_teacher.targets.logit_blocks import (
    Blocks,
    blocks_of,
    largest,
    times_each,
    without,
)
from stages.cache_teacher.targets.spreading import spread
from stages.cache_teacher.targets.target_maker import IdTargets, TargetMaker
from stages.cache_teacher.targets.teacher_head import Head

_NEAR = 3.0
"""Ids this close to the largest logit are compared: deeper ones are stored more coarsely."""


def num_uniform(spec: TargetSpec) -> int:
    """Nothing is drawn."""
    del spec
    return 0


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


def rows(batch: PackedUnit, targets: IdTargets) -> list[Row]:
    """See ``TargetKind.rows``."""
    kept_B = kept_ids(targets).spread(batch.scored_RT())
    tail_PN, next_P = targets.tail_log_mass_PN.numpy(), targets.next_logprob_P.numpy()
    made = rows_of_ids(batch, kept_B, tail_PN, next_P)
    if not targets.moment_PJ.shape[1]:
        return made
    moment_BTJ = spread(targets.moment_PJ.numpy(), batch.scored_RT())
    return [
        replace(row, moment_coefficients=of_row)
        for row, of_row in zip(made, moment_BTJ, strict=True)
    ]


class KeptLogits(NamedTuple):
    """The largest logits of C positions, and what is left without them."""

    z_max_C1: Tensor
    log_z_C1: Tensor
    """log Z − z_max at T = 1."""
    next_logprob_C1: Tensor
    num_kept_C: Tensor
    ids_CK: Tensor
    gaps_CK: Tensor
    last_key_C: Tensor
    """Key of the last kept id, see ``order_keys``."""
    rest: Blocks
    """The blocks without the kept ids."""
    tail_log_mass_CN: Tensor

    def fields(self) -> tuple[Tensor, ...]:
        """The fields of ``IdTargets`` but for those of drawn ids."""
        return (
            self.log_z_C1[:, 0],
            self.next_logprob_C1[:, 0],
            self.num_kept_C.int(),
            self.ids_CK.int(),
            self.gaps_CK,
            self.tail_log_mass_CN,
        )


def reduce(
    logits_CV: Tensor, labels_C: Tensor, uniform_C0: Tensor, *, spec: TargetSpec
) -> tuple[Tensor, ...]:
    """The fields of ``IdTargets`` for the positions of a chunk."""
    del uniform_C0
    kept = keep_largest(logits_CV, labels_C, spec)
    none_C0 = kept.z_max_C1[:, :0]
    return *kept.fields(), none_C0.int(), none_C0


def keep_largest(logits_CV: Tensor, labels_C: Tensor, spec: TargetSpec) -> KeptLogits:
    """Keep the ``top_k`` largest logits, or as many as hold ``keep_mass``."""
    logits, inverse_temperatures = spec.logits, spec.logits.inverse_temperatures
    blocks = blocks_of(logits_CV, inverse_temperatures)
    z_max_C1 = blocks.largest_C1()
    label_gap_C1 = z_max_C1 - logits_CV.gather(1, labels_C[:, None])
    found = largest(logits_CV, blocks, logits.top_k)
    gaps_CK = z_max_C1 - found.values_CK
    num_kept_C = torch.full_like(labels_C, logits.top_k)
    if logits.keep_mass < 1:
        log_z_C1 = blocks.at(len(inverse_temperatures) - 1).log_mass((1.0,)) - z_max_C1
        num_kept_C = _num_needed((-gaps_CK - log_z_C1).exp(), logits.keep_mass)
    last_key_C = found.keys_CK.gather(1, num_kept_C[:, None] - 1)[:, 0]
    rest = without(logits_CV, blocks, found, last_key_C, inverse_temperatures)
    scaled_CN = times_each(z_max_C1, inverse_temperatures)
    tail_CN = rest.log_mass(inverse_temperatures) - scaled_CN
    is_kept_CK = torch.arange(logits.top_k, device=gaps_CK.device) < num_kept_C[:, None]
    kept_log_mass_C1 = torch.logsumexp(
        -gaps_CK.masked_fill(~is_kept_CK, torch.inf), 1, keepdim=True
    )
    log_z_C1 = torch.logaddexp(kept_log_mass_C1, tail_CN[:, -1:])
    return KeptLogits(
        z_max_C1=z_max_C1,
        log_z_C1=log_z_C1,
        next_logprob_C1=-label_gap_C1 - log_z_C1,
        num_kept_C=num_kept_C,
        ids_CK=found.ids_CK,
        gaps_CK=gaps_CK,
        last_key_C=last_key_C,
        rest=rest,
        tail_log_mass_CN=tail_CN,
    )


def _num_needed(probabilities_CK: Tensor, keep_mass: float) -> Tensor:
    """The smallest n whose n largest probabilities reach ``keep_mass``; all K if none does."""
    short_CK = probabilities_CK.double().cumsum(1) < keep_mass
    return (short_CK.sum(1) + 1).clamp_max(probabilities_CK.shape[1])


def kept_ids(targets: IdTargets) -> Ids:
    """The kept ids of P positions, ragged."""
    num_P = targets.num_kept_P.numpy()
    is_kept_PK = np.arange(targets.logit_gaps_PK.shape[1]) < num_P[:, None]
    ids = targets.kept_ids_PK.numpy()[is_kept_PK]
    gaps = targets.logit_gaps_PK.numpy()[is_kept_PK]
    return Ids(num_P.astype(np.uint16), ids, gaps, np.ones(len(ids), np.uint16))


def differences(stored: Row, made: Row, spec: TargetSpec, number: int) -> Iterator[Difference]:
    """Distances from the largest logit, of the ids near it."""
    ids, ids_now = stored.kept, made.kept
    ends_T = np.cumsum(ids.num_ids, dtype=np.int64)
    ends_now_T = np.cumsum(ids_now.num_ids, dtype=np.int64)
    for t in np.flatnonzero(stored.scored()):
        kept = slice(ends_T[t] - ids.num_ids[t], ends_T[t])
        kept_now = slice(ends_now_T[t] - ids_now.num_ids[t], ends_now_T[t])
        gaps_now = dict(
            zip(ids_now.ids[kept_now].tolist(), ids_now.gaps[kept_now].tolist(), strict=True)
        )
        rounding = _rounding_of_gaps(ids.gaps[kept], float(ids.tail_log_mass[t, -1]), spec)
        for token_id, gap, error in zip(
            ids.ids[kept].tolist(), ids.gaps[kept].tolist(), rounding, strict=True
        ):
            if gap > _NEAR:
                continue
            # An id that is not kept now lies behind the last that is.
            now = gaps_now.get(token_id, max(gap, max(gaps_now.values(), default=np.inf)))
            yield Difference(
                row=number,
                position=int(t),
                what=f"the distance of id {token_id} from the largest logit",
                stored=gap,
                made=now,
                rounding=float(error),
            )


def _rounding_of_gaps(
    gaps_K: npt.NDArray[np.float32], tail_log_mass: float, spec: TargetSpec
) -> npt.NDArray[np.float64]:
    """What the codec may have rounded gaps by: p^(1/4) is stored in steps of 1/num_levels."""
    log_z = np.logaddexp(np.logaddexp.reduce(-gaps_K.astype(np.float64)), tail_log_mass)
    roots_K = np.exp(-(gaps_K + log_z) / 4)
    half_step = 0.5 / spec.logits.num_levels
    errors_K: npt.NDArray[np.float64] = 4 * half_step * (1 / roots_K + 1 / roots_K.max())
    return 1.5 * errors_K  # of first order
