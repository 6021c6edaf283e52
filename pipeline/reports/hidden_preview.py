"""The likeliest ids of positions whose cache holds the teacher's hidden states.

In: a cache with ``hidden`` targets, and one of its rows. Out: for each position what
``TargetKind.preview`` gives of other kinds, at T = 1; there is no tail. The head is multiplied in
blocks of ids, so that the logits of a row are never there at once.

P scored positions, D width, V vocabulary, v ids of a block.
"""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cache_format.codec.row import Row
from cache_format.reader import Cache

_BLOCK = 8192


def add_likeliest(
    previews: list[dict[str, Any]], row: Row, cache: Cache, most: int
) -> list[dict[str, Any]]:
    """``previews`` of T positions with ``p_next`` and, as ``kept``, the ``most`` likeliest ids at
    those that are scored. As they are where ids are kept, or the teacher's head is not in the cache
    yet.

    Raises CacheError or ValueError if the head is damaged.
    """
    if row.coefficients is None or row.kept_ids is not None:
        return previews
    if "embedding.safetensors" not in cache.attachments():
        return previews
    scored = row.scored()
    states_PD = cache.tables.hidden_transform.states(row.coefficients[scored])
    found = _Likeliest(states_PD, row.token_ids[1:][scored], most)
    _multiply(found, cache)
    added = list(previews)
    for t, of_position in zip(np.flatnonzero(scored), found.positions(), strict=True):
        added[t] = previews[t] | of_position
    return added


def _multiply(found: "_Likeliest", cache: Cache) -> None:
    """Show ``found`` the logits of all ids."""
    # Reads every dtype that heads have, bfloat16 too, which NumPy lacks.
    from stages.train_student.data.teacher_files import teacher_head

    head_VD = teacher_head(cache)
    for first in range(0, len(head_VD), _BLOCK):
        head_vD = head_VD[first : first + _BLOCK].float().numpy()
        with np.errstate(over="ignore", invalid="ignore"):  # which is told when all is known
            found.add(found.states_PD @ head_vD.T, first)


@dataclass
class _Likeliest:
    """The likeliest ids of P positions, of the blocks of logits that were shown."""

    states_PD: NDArray[np.float32]
    labels_P: NDArray[np.int32]
    most: int
    ids_PK: NDArray[np.int64] = field(init=False)
    logits_PK: NDArray[np.float64] = field(init=False)
    label_logit_P: NDArray[np.float64] = field(init=False)
    log_z_P: NDArray[np.float64] = field(init=False)

    def __post_init__(self) -> None:
        num_positions = len(self.states_PD)
        self.ids_PK = np.empty((num_positions, 0), np.int64)
        self.logits_PK = np.empty((num_positions, 0))
        self.label_logit_P = np.full(num_positions, -np.inf)
        self.log_z_P = np.full(num_positions, -np.inf)

    def add(self, logits_Pv: NDArray[np.float32], first: int) -> None:
        """Take note of the ids from ``first`` on."""
        wide_Pv = logits_Pv.astype(np.float64)
        num_ids = wide_Pv.shape[1]
        is_here_P = (self.labels_P >= first) & (self.labels_P < first + num_ids)
        here_P = np.flatnonzero(is_here_P)
        self.label_logit_P[here_P] = wide_Pv[here_P, self.labels_P[here_P] - first]
        largest_P = wide_Pv.max(1)
        log_z_P = largest_P + np.log(np.exp(wide_Pv - largest_P[:, None]).sum(1))
        self.log_z_P = np.logaddexp(self.log_z_P, log_z_P)
        best_PK = np.argpartition(-wide_Pv, min(self.most, num_ids) - 1, 1)[:, : self.most]
        logits = np.concatenate([self.logits_PK, np.take_along_axis(wide_Pv, best_PK, 1)], 1)
        ids = np.concatenate([self.ids_PK, best_PK + first], 1)
        order_PK = np.argsort(-logits, 1, kind="stable")[:, : self.most]
        self.logits_PK = np.take_along_axis(logits, order_PK, 1)
        self.ids_PK = np.take_along_axis(ids, order_PK, 1)

    def positions(self) -> list[dict[str, Any]]:
        """What was found, fit for JSON."""
        if not np.isfinite(self.log_z_P).all():
            raise ValueError(
                "the teacher's logits, made of the cache's hidden states and head, are no numbers: "
                "the cache is damaged, or was made to be. Make it again."
            )
        p_PK = np.exp(self.logits_PK - self.log_z_P[:, None]).tolist()
        p_next_P = np.exp(self.label_logit_P - self.log_z_P).tolist()
        return [
            {
                "p_next": p_next,
                "kept": [{"id": token_id, "p": p} for token_id, p in zip(ids, ps, strict=True)],
            }
            for p_next, ids, ps in zip(p_next_P, self.ids_PK.tolist(), p_PK, strict=True)
        ]
