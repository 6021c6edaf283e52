"""The teacher's distribution as a cache holds it, at every temperature that it covers.

In: kept ids, the log-mass of all others at a few inverse temperatures, and, where the cache has
them, ids drawn from those others. Out, in float64: log-probabilities at a temperature, and the
weights of the drawn ids. Made from a batch by its kind of target.

Shapes: N positions, K kept ids, J drawn ids, M inverse temperatures.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from stages.train_student.data.targets.tail_moment import TailMoments
from stages.train_student.data.temperatures import lagrange_weights


@dataclass(frozen=True)
class SparseSamples:
    """Ids drawn with replacement from r_j ∝ exp(z_j·s) over the ids that are not kept.

    ``ids_NJ`` int64, none of them kept. ``counts_NJ``, how often each was drawn; 0 marks padding.
    ``gaps_NJ`` float32, z_max − z_j in nats at T = 1. ``inverse_temperature`` s is one of the
    nodes.
    """

    ids_NJ: Tensor
    counts_NJ: Tensor
    gaps_NJ: Tensor
    inverse_temperature: float

    def chunk(self, start: int, stop: int) -> "SparseSamples":
        """The samples of positions ``start`` to ``stop``."""
        return SparseSamples(
            self.ids_NJ[start:stop],
            self.counts_NJ[start:stop],
            self.gaps_NJ[start:stop],
            self.inverse_temperature,
        )


@dataclass(frozen=True)
class SparseTargets:
    """The teacher's distribution at N positions.

    ``kept_ids_NK`` int64; a position with fewer than K repeats its first id. ``gaps_NK`` float32,
    z_max − z_j ≥ 0 in nats at T = 1; +inf marks such a repetition. ``tail_log_mass_NM`` float32,
    log Σ exp((z_j − z_max)·s) over all ids that are not kept, at every node s = 1/T; −inf where
    there are none.
    """

    kept_ids_NK: Tensor
    gaps_NK: Tensor
    tail_log_mass_NM: Tensor
    inverse_temperatures: tuple[float, ...]
    samples: SparseSamples | None = None
    moments: TailMoments | None = None
    """Only where the cache has them, and the student's head is the teacher's."""

    def chunk(self, start: int, stop: int) -> "SparseTargets":
        """The targets of positions ``start`` to ``stop``."""
        return SparseTargets(
            self.kept_ids_NK[start:stop],
            self.gaps_NK[start:stop],
            self.tail_log_mass_NM[start:stop],
            self.inverse_temperatures,
            None if self.samples is None else self.samples.chunk(start, stop),
            None if self.moments is None else self.moments.chunk(start, stop),
        )

    def tail_log_mass(self, inverse_temperature: float) -> Tensor:
        """log Σ exp((z_j − z_max)/T) over the ids that are not kept, [N]; −inf where none is."""
        weights_M = lagrange_weights(self.inverse_temperatures, inverse_temperature)
        # 0·(−inf) is NaN, so nodes of weight 0 are left out: at a node its own value is exact.
        # Column by column: weights or places in a tensor would make the host wait for a GPU.
        weighted = [
            self.tail_log_mass_NM[:, m].double() * weight
            for m, weight in enumerate(weights_M)
            if weight != 0.0
        ]
        tail_N = torch.stack(weighted).sum(0)
        return tail_N.masked_fill(self.tail_log_mass_NM[:, -1] == -math.inf, -math.inf)

    def logprobs(self, temperature: float) -> tuple[Tensor, Tensor]:
        """log p_T of the kept ids [N, K] (−inf where repeated) and of the tail [N]."""
        tail_N = self.tail_log_mass(1 / temperature)
        scores_NK = self.gaps_NK.double() / -temperature
        log_z_N = torch.logaddexp(scores_NK.logsumexp(1), tail_N)
        return scores_NK - log_z_N[:, None], tail_N - log_z_N

    def sample_shares(self, temperature: float) -> tuple[Tensor, Tensor]:
        """Each drawn id's share of the tail's mass, and its log-probability within it: [N, J].

        Within the tail, p_T(j) is estimated by (c_j/m)·p_T(j)/r(j): importance sampling, unbiased
        at every T. At the temperature that ids were drawn at it is c_j/m, whatever the gaps. At
        others an error of a gap, δ, scales it by exp(δ·|s − 1/T|): at most 3 % at T = 2 of draws at
        T = 1, for the format's gaps are right within 1/16 nat, and errors have either sign. So do
        those of the two log-masses, within 1/128 nat at a node. Padding has a share of 0 and a
        log-probability that means nothing.
        """
        assert self.samples is not None
        inverse, drawn_at = 1 / temperature, self.samples.inverse_temperature
        counts_NJ, gaps_NJ = self.samples.counts_NJ.double(), self.samples.gaps_NJ.double()
        drawn_NJ = counts_NJ / counts_NJ.sum(1, keepdim=True)
        logprobs_NJ = -gaps_NJ * inverse - self.tail_log_mass(inverse)[:, None]
        log_r_NJ = -gaps_NJ * drawn_at - self.tail_log_mass(drawn_at)[:, None]
        shares_NJ = drawn_NJ * (logprobs_NJ - log_r_NJ).exp()
        # Where nothing is left out, none was drawn, and 0/0 and ∞ − ∞ are NaN.
        return shares_NJ.masked_fill(counts_NJ == 0, 0.0), logprobs_NJ
