"""What is kept of the teacher's distribution: the k largest logits, and the mass of the rest.

In: last hidden states [P, D], labels [P], the head. Out: ``Targets`` on the CPU. Called by
``run``. The head runs over a chunk of positions at a time, and full logits never leave
``_chunk_targets``: memory is chunk × vocabulary, whatever the number of positions.
P positions, C positions of a chunk, D width, V vocabulary, K kept, N nodes of 1/T.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from cache_format.spec import TargetSpec

_POWERS = 8  # nodes are multiples of 1/8: one exp of z/8 per logit, the rest are products


class NonFiniteError(ValueError):
    """The teacher made a number that is not finite, at ``position`` of those handed in."""

    def __init__(self, position: int) -> None:
        super().__init__(f"position {position}: not finite")
        self.position = position


@dataclass(frozen=True, kw_only=True)
class Targets:
    """Targets of P positions, padded to K."""

    num_kept_P: npt.NDArray[np.uint16]
    """How many of the K are kept."""
    kept_ids_PK: npt.NDArray[np.int32]
    """In order of falling logit, the lowest id first on a tie."""
    gaps_PK: npt.NDArray[np.float32]
    """Largest logit minus this one, in nats at T = 1; 0 for the first."""
    tail_log_mass_PN: npt.NDArray[np.float32]
    """log Σ exp((z_j − z_max)·s) over ids that are not kept; −inf where none is left out."""
    next_logprob_P: npt.NDArray[np.float32]
    """Log-probability of the label at T = 1."""


class Head:
    """The teacher's head without its padding rows, in the precision it is multiplied in."""

    def __init__(self, weight: torch.Tensor, vocab_size: int) -> None:
        head_VD = weight.detach()[:vocab_size]
        # Half-precision products with float32 sums exist on GPUs alone; elsewhere pay once here.
        self._is_mixed = head_VD.is_cuda and head_VD.dtype in (torch.bfloat16, torch.float16)
        self._head_DV = (head_VD if self._is_mixed else head_VD.float()).T
        self.vocab_size = vocab_size

    def logits(self, hidden_CD: torch.Tensor) -> torch.Tensor:
        """Logits [C, V] summed and returned in float32: bfloat16 would round by 0.06 near 19."""
        if self._is_mixed:
            return torch.mm(
                hidden_CD.to(self._head_DV.dtype), self._head_DV, out_dtype=torch.float32
            )
        return hidden_CD.float() @ self._head_DV


@torch.inference_mode()
def compute_targets(
    hidden_PD: torch.Tensor, labels_P: torch.Tensor, head: Head, spec: TargetSpec, chunk: int
) -> Targets:
    """Targets of P positions, ``chunk`` of them at a time.

    Raises NonFiniteError naming the first position whose logits are not finite.
    """
    parts = []
    for start in range(0, len(hidden_PD), chunk):
        logits_CV = head.logits(hidden_PD[start : start + chunk])
        try:
            part = _chunk_targets(logits_CV, labels_P[start : start + chunk], spec)
        except NonFiniteError as error:
            raise NonFiniteError(start + error.position) from None
        parts.append([tensor.cpu().numpy() for tensor in part])
        del logits_CV
    if not parts:
        return _no_targets(spec)
    num_kept_P, kept_ids_PK, gaps_PK, tail_PN, next_P = (
        np.concatenate(arrays) for arrays in zip(*parts, strict=True)
    )
    return Targets(
        num_kept_P=num_kept_P.astype(np.uint16),
        kept_ids_PK=kept_ids_PK.astype(np.int32),
        gaps_PK=gaps_PK,
        tail_log_mass_PN=tail_PN,
        next_logprob_P=next_P,
    )


def _no_targets(spec: TargetSpec) -> Targets:
    return Targets(
        num_kept_P=np.zeros(0, np.uint16),
        kept_ids_PK=np.zeros((0, spec.top_k), np.int32),
        gaps_PK=np.zeros((0, spec.top_k), np.float32),
        tail_log_mass_PN=np.zeros((0, len(spec.inverse_temperatures)), np.float32),
        next_logprob_P=np.zeros(0, np.float32),
    )


def _chunk_targets(
    logits_CV: torch.Tensor, labels_C: torch.Tensor, spec: TargetSpec
) -> tuple[torch.Tensor, ...]:
    """num_kept, kept_ids, gaps, tail_log_mass, next_logprob. Overwrites ``logits_CV``."""
    values_CK, ids_CK = exact_top_k(logits_CV, spec.top_k)
    largest_C1 = values_CK[:, :1]
    gaps_CK = largest_C1 - values_CK
    label_gap_C1 = largest_C1 - logits_CV.gather(1, labels_C[:, None])
    tail_CN = _tail_log_mass(
        logits_CV.scatter_(1, ids_CK, -torch.inf), largest_C1, spec.inverse_temperatures
    )
    # log Z − z_max; the last node is 1, where tail and kept make up the whole softmax.
    log_z_C1 = torch.logaddexp(torch.logsumexp(-gaps_CK, 1, keepdim=True), tail_CN[:, -1:])
    num_kept_C = torch.full_like(labels_C, spec.top_k)
    if spec.keep_mass < 1:
        num_kept_C = _num_needed(torch.exp(-gaps_CK - log_z_C1), spec.keep_mass)
        tail_CN = _with_given_up(tail_CN, gaps_CK, num_kept_C, spec.inverse_temperatures)
    return num_kept_C, ids_CK, gaps_CK, tail_CN, -(label_gap_C1 + log_z_C1)[:, 0]


def exact_top_k(logits_CV: torch.Tensor, top_k: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The k largest logits and their ids, falling; the lowest id wins every tie.

    ``torch.topk`` promises nothing about ties. Only rows whose next logit equals their k-th can
    have the wrong ids; those are chosen anew. Raises NonFiniteError.
    """
    num_asked = min(top_k + 1, logits_CV.shape[1])
    values_CK, ids_CK = torch.topk(logits_CV, num_asked, dim=1)
    next_C, values_CK, ids_CK = values_CK[:, -1], values_CK[:, :top_k], ids_CK[:, :top_k]
    refuse_non_finite(values_CK)  # not a number counts as largest, so none escapes
    if num_asked > top_k:
        ambiguous = (next_C == values_CK[:, -1]).nonzero()[:, 0]
        if len(ambiguous):
            kth_C1 = values_CK[ambiguous, -1:]
            ids_CK[ambiguous] = _lowest_ids(logits_CV[ambiguous], kth_C1, top_k)
    ids_CK = ids_CK.sort(1).values  # then a stable sort by value leaves equals in order of id
    values_CK, order_CK = logits_CV.gather(1, ids_CK).sort(stable=True, dim=1, descending=True)
    return values_CK, ids_CK.gather(1, order_CK)


def _lowest_ids(logits_CV: torch.Tensor, kth_C1: torch.Tensor, top_k: int) -> torch.Tensor:
    """Ids of the logits above the k-th, and of the first of its equals, up to k: [C, K]."""
    above_CV, equal_CV = logits_CV > kth_C1, logits_CV == kth_C1
    places_C1 = top_k - above_CV.sum(1, keepdim=True)
    chosen_CV = above_CV | (equal_CV & (equal_CV.cumsum(1, dtype=torch.int32) <= places_C1))
    return chosen_CV.nonzero()[:, 1].view(len(logits_CV), top_k)


def _tail_log_mass(
    logits_CV: torch.Tensor, largest_C1: torch.Tensor, nodes: tuple[float, ...]
) -> torch.Tensor:
    """log Σ exp((z_j − z_max)·s) at every node s: [C, N]. Kept logits are −inf; overwrites them.

    Taken relative to the tail's own largest logit, so that a tail of any depth keeps its digits.
    """
    lowest = torch.finfo(logits_CV.dtype).min
    tail_max_C1 = logits_CV.amax(1, keepdim=True).clamp_min(lowest)
    weight_CV = logits_CV.sub_(tail_max_C1).div_(_POWERS).exp_()
    wanted = [round(node * _POWERS) for node in nodes]
    log_masses = []
    power_CV = weight_CV.clone()
    for exponent in range(1, wanted[-1] + 1):
        if exponent > 1:
            power_CV.mul_(weight_CV)
        if exponent in wanted:
            log_mass_C1 = power_CV.sum(1, keepdim=True).log()
            shift_C1 = (tail_max_C1 - largest_C1) * (exponent / _POWERS)
            log_masses.append(log_mass_C1 + shift_C1)
    return torch.cat(log_masses, 1)


def _num_needed(probabilities_CK: torch.Tensor, keep_mass: float) -> torch.Tensor:
    """The smallest n whose n largest probabilities reach ``keep_mass``; all K if none does."""
    short_CK = probabilities_CK.double().cumsum(1) < keep_mass
    return (short_CK.sum(1) + 1).clamp_max(probabilities_CK.shape[1])


def _with_given_up(
    tail_CN: torch.Tensor, gaps_CK: torch.Tensor, num_kept_C: torch.Tensor, nodes: tuple[float, ...]
) -> torch.Tensor:
    """Add to the tail what was among the k largest but is not kept."""
    ranks_K = torch.arange(gaps_CK.shape[1], device=gaps_CK.device)
    given_up_CK = -gaps_CK.masked_fill(ranks_K < num_kept_C[:, None], torch.inf)
    added = [torch.logsumexp(given_up_CK * node, 1, keepdim=True) for node in nodes]
    return torch.logaddexp(tail_CN, torch.cat(added, 1))


def refuse_non_finite(values_PX: torch.Tensor) -> None:
    """Raise NonFiniteError for the first position with a value that is not finite."""
    is_bad_P = ~torch.isfinite(values_PX).all(1)
    if bool(is_bad_P.any()):
        raise NonFiniteError(int(is_bad_P.nonzero()[0, 0]))
