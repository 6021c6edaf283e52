"""What the device made of scored positions becomes rows of the cache.

In: the packed rows of a forward pass and their targets, in the host's memory. Out: ``Row``s. Called
by ``step``. Positions that are not scored keep nothing. B rows, T positions, P of them scored, K
kept, M draws, N nodes, d sketch; n ids of all positions.
"""

from typing import NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt
import torch

from cache_format.codec.row_codec import Row
from cache_format.codec.samples import TailDraws
from cache_format.metadata.spec import CacheSpec
from stages.cache_teacher.corpus.packing import PackedUnit
from stages.cache_teacher.targets.target_maker import Targets

_Number = TypeVar("_Number", bound=np.generic)
_Bools = npt.NDArray[np.bool_]


class Ids(NamedTuple):
    """Ids of P positions, those of one after those of the other."""

    num_P: npt.NDArray[np.uint16]
    ids: npt.NDArray[np.int32]
    gaps: npt.NDArray[np.float32]
    counts: npt.NDArray[np.uint16]
    """How often each was drawn; 1 for what was not."""

    def spread(self, scored_BT: _Bools) -> "list[Ids]":
        """Row by row, with none at positions that are not scored."""
        num_BT = _spread(self.num_P, scored_BT)
        ends_B = num_BT.sum(1, dtype=np.int64).cumsum()[:-1]
        parts = (np.split(values, ends_B) for values in (self.ids, self.gaps, self.counts))
        return [Ids(*row) for row in zip(num_BT, *parts, strict=True)]


def rows_of(
    batch: PackedUnit, targets: Targets, sketch_Pd: torch.Tensor, spec: CacheSpec
) -> list[Row]:
    """The rows of ``batch``."""
    scored_BT, kind = batch.scored_RT(), spec.targets.kind
    tail_PN = targets.tail_log_mass_PN.numpy()
    if kind == "sampled":
        kept = samples(targets.drawn_ids_PM.numpy())
        tail_PN = np.full((len(kept.num_P), 1), -np.inf, np.float32)  # they leave nothing out
    else:
        kept = _largest(targets)
    kept_B = kept.spread(scored_BT)
    drawn_B = _drawn(targets, tail_PN).spread(scored_BT) if kind == "top_k+sampled" else None
    tail_BTN = _spread(tail_PN, scored_BT)
    next_BT = _spread(targets.next_logprob_P.numpy(), scored_BT)
    sketch_BTd = _spread(sketch_Pd.numpy(), scored_BT) if spec.sketch.dim else None
    return [
        Row(
            token_ids=batch.token_ids_RT[row],
            document_starts=starts,
            num_kept=kept_B[row].num_P,
            kept_ids=kept_B[row].ids,
            gaps=kept_B[row].gaps,
            counts=kept_B[row].counts if kind == "sampled" else None,
            draws=None if drawn_B is None else _tail_draws(drawn_B[row]),
            tail_log_mass=tail_BTN[row],
            next_logprob=next_BT[row],
            sketch=None if sketch_BTd is None else sketch_BTd[row],
        )
        for row, starts in enumerate(batch.document_starts)
    ]


def samples(drawn_PM: npt.NDArray[np.int32]) -> Ids:
    """Draws as ids with counts, the most drawn first, then the lowest; ``drawn_PM`` rises."""
    num_P, ids, counts = _counted(drawn_PM)
    position = np.repeat(np.arange(len(num_P)), num_P)
    order = np.lexsort((ids, -counts, position))
    counts = counts[order]
    most_P = counts[(np.cumsum(num_P, dtype=np.int64) - num_P)]
    gaps = np.log(most_P[position] / counts).astype(np.float32)
    return Ids(num_P.astype(np.uint16), ids[order], gaps, counts.astype(np.uint16))


def _largest(targets: Targets) -> Ids:
    num_P = targets.num_kept_P.numpy()
    is_kept_PK = np.arange(targets.gaps_PK.shape[1]) < num_P[:, None]
    ids = targets.kept_ids_PK.numpy()[is_kept_PK]
    gaps = targets.gaps_PK.numpy()[is_kept_PK]
    return Ids(num_P.astype(np.uint16), ids, gaps, np.ones(len(ids), np.uint16))


def _drawn(targets: Targets, tail_PN: npt.NDArray[np.float32]) -> Ids:
    """Draws from the tail, at the positions that have one."""
    has_tail_P = ~np.isneginf(tail_PN[:, -1])
    drawn_PM = targets.drawn_ids_PM.numpy()[has_tail_P]
    num, ids, counts = _counted(drawn_PM)
    num_P = np.zeros(len(has_tail_P), np.uint16)
    num_P[has_tail_P] = num
    gaps = targets.drawn_gaps_PM.numpy()[has_tail_P][_is_new(drawn_PM)]
    return Ids(num_P, ids, gaps, counts.astype(np.uint16))


def _counted(
    drawn_PM: npt.NDArray[np.int32],
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int32], npt.NDArray[np.int64]]:
    """Distinct ids of each position, the ids, and how often each is there."""
    is_new_PM = _is_new(drawn_PM)
    counts = np.diff(np.flatnonzero(is_new_PM), append=drawn_PM.size)
    return is_new_PM.sum(1), drawn_PM[is_new_PM], counts


def _is_new(drawn_PM: npt.NDArray[np.int32]) -> _Bools:
    """Where an id is that is not the one before it."""
    is_new_PM = np.ones(drawn_PM.shape, np.bool_)
    is_new_PM[:, 1:] = drawn_PM[:, 1:] != drawn_PM[:, :-1]
    return is_new_PM


def _tail_draws(ids: Ids) -> TailDraws:
    return TailDraws(num_ids=ids.num_P, ids=ids.ids, counts=ids.counts, gaps=ids.gaps)


def _spread(values_PX: npt.NDArray[_Number], scored_BT: _Bools) -> npt.NDArray[_Number]:
    spread_BTX = np.zeros((*scored_BT.shape, *values_PX.shape[1:]), values_PX.dtype)
    spread_BTX[scored_BT] = values_PX
    return spread_BTX
