"""Ids of scored positions, kept or drawn, become rows of the cache.

In: the packed rows of a forward pass and their ids, in the host's memory. Out: ``Row``s. Positions
that are not scored keep nothing. B rows, T positions, P of them scored, M samples, N inverse
temperatures; n ids of all positions.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from cache_format.codec.row import KeptIds, Row
from stages.cache_teacher.corpus.packing import PackedUnit
from stages.cache_teacher.targets.spreading import spread

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
        num_BT = spread(self.num_P, scored_BT)
        ends_B = num_BT.sum(1, dtype=np.int64).cumsum()[:-1]
        parts = (np.split(values, ends_B) for values in (self.ids, self.gaps, self.counts))
        return [Ids(*row) for row in zip(num_BT, *parts, strict=True)]


def rows_of_ids(
    batch: PackedUnit,
    kept_B: Sequence[Ids],
    tail_PN: npt.NDArray[np.float32],
    next_logprob_P: npt.NDArray[np.float32],
) -> list[Row]:
    """The rows of ``batch``, without sketches."""
    scored_BT = batch.scored_RT()
    tail_BTN, next_BT = spread(tail_PN, scored_BT), spread(next_logprob_P, scored_BT)
    return [
        Row(
            token_ids=batch.token_ids_RT[row],
            document_starts=starts,
            is_context=batch.context_of(row),
            kept_ids=KeptIds(
                num_ids=kept_B[row].num_P,
                ids=kept_B[row].ids,
                gaps=kept_B[row].gaps,
                tail_log_mass=tail_BTN[row],
                next_logprob=next_BT[row],
            ),
        )
        for row, starts in enumerate(batch.document_starts)
    ]


def counted(
    samples_PM: npt.NDArray[np.int32],
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int32], npt.NDArray[np.int64]]:
    """Distinct ids of each position, the ids, and how often each is there: [P], [n], [n].

    ``samples_PM`` rises.
    """
    is_new_PM = is_new(samples_PM)
    counts = np.diff(np.flatnonzero(is_new_PM), append=samples_PM.size)
    return is_new_PM.sum(1), samples_PM[is_new_PM], counts


def is_new(samples_PM: npt.NDArray[np.int32]) -> _Bools:
    """Where an id is that is not the one before it, [P, M]."""
    is_new_PM = np.ones(samples_PM.shape, np.bool_)
    is_new_PM[:, 1:] = samples_PM[:, 1:] != samples_PM[:, :-1]
    return is_new_PM
