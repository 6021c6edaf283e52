"""The teacher's whole distribution, as what its head is applied to and the head.

With kept logits beside it, these are exact, and so is the mass of all other ids; the state then
says only how that mass is spread.

N positions, n of them at a time, V vocabulary, C columns of the head, D width, K kept ids.
"""

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from stages.compute.matmul import product
from stages.train_student.data.targets.sparse_targets import SparseTargets

_LOWEST = -1e30
"""A logit whose probability is 0, and of which 0 times it is not NaN."""


class HeadColumns(Protocol):
    """Some of the head's columns, in place of all."""

    @property
    def ids_C(self) -> Tensor:
        """Their ids."""

    @property
    def log_weight_C(self) -> Tensor:
        """log of how many ids each stands for."""

    def places(self, target_ids: Tensor) -> Tensor:
        """The column of each of ``target_ids``."""


@dataclass(frozen=True)
class DenseTargets:
    """The teacher at N positions."""

    hidden_ND: Tensor
    head_VD: Tensor
    """Its rows that stand for ids, in the precision that they multiply in."""
    kept: SparseTargets | None = None
    """Logits that are known better, and the mass of the others."""

    def logits(
        self,
        rows: slice,
        temperature: float,
        out_nV: Tensor | None = None,
        columns: HeadColumns | None = None,
    ) -> Tensor:
        """float32 [n, V] whose softmax at ``temperature`` is the distribution of some positions.

        On a CPU written to ``out_nV``, if it is given. With ``columns``, which name all kept ids,
        [n, C] and counted as often as these say.
        """
        head_CD = self.head_VD
        if columns is not None:
            head_CD = head_CD.index_select(0, columns.ids_C)
        logits_nC = product(self.hidden_ND[rows], head_CD.T, out_nV)
        if self.kept is None:
            return logits_nC
        kept = self.kept.chunk(rows.start, rows.stop)
        return _corrected(logits_nC, kept, temperature, columns)

    def label_logprobs(self, labels_N: Tensor, chunk: int) -> Tensor:
        """log p of the labels at T = 1, float64 [N]; ``chunk`` positions have logits at once."""
        parts = []
        for start in range(0, len(labels_N), chunk):
            rows = slice(start, start + chunk)
            logits_nV = self.logits(rows, 1.0)
            at_label_n = logits_nV.gather(1, labels_N[rows, None])[:, 0]
            parts.append((at_label_n - logits_nV.logsumexp(1)).double())
        return torch.cat(parts)

    def first_choices(self, chunk: int) -> tuple[Tensor, Tensor]:
        """Probability and id of the likeliest token at every position, ``chunk`` at a time."""
        confidences, ids = [], []
        for start in range(0, len(self.hidden_ND), chunk):
            logits_nV = self.logits(slice(start, start + chunk), 1.0)
            largest_n, ids_n = logits_nV.max(1)
            confidences.append((largest_n - logits_nV.logsumexp(1)).exp())
            ids.append(ids_n)
        return torch.cat(confidences), torch.cat(ids)


def _corrected(
    logits_nC: Tensor, kept: SparseTargets, temperature: float, columns: HeadColumns | None
) -> Tensor:
    """T·log p_T: kept ids as they are known, the others as ``logits_nC`` spread their mass.

    Changes ``logits_nC`` in place.
    """
    kept_nK, tail_n = kept.logprobs(temperature)
    # A repetition of the first id has what that has: whichever is written last, it is the same.
    kept_nK = torch.where(kept.gaps_NK == torch.inf, kept_nK[:, :1], kept_nK)
    places_nK = kept.kept_ids_NK if columns is None else columns.places(kept.kept_ids_NK)
    logits_nC.scatter_(1, places_nK, -torch.inf)
    scores_nC = logits_nC / temperature
    if columns is not None:
        scores_nC = scores_nC + columns.log_weight_C
    log_sum_n = scores_nC.logsumexp(1).double()
    shift_n = (tail_n - log_sum_n).nan_to_num(neginf=_LOWEST) * temperature
    logits_nC += shift_n[:, None].float()
    logits_nC.scatter_(1, places_nK, (kept_nK * temperature).float())
    return logits_nC.clamp_min_(_LOWEST)
