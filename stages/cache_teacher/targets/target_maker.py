"""What is kept of the teacher's distribution: the k largest logits and the mass of the rest, ids
drawn at random, or the k largest and draws from the rest.

In: last hidden states [P, D], labels [P], uniform numbers [P, M] where ids are drawn. Out:
``Targets`` on the same device; nothing here waits for it. The head runs over a chunk of positions
at a time, and full logits never leave ``_chunk``: memory is chunk × vocabulary, whatever the number
of positions. P positions, C of a chunk, D width, V vocabulary, K kept, N nodes of 1/T, M draws.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from cache_format.metadata.spec_parts.targets import TargetSpec
from stages.cache_teacher.targets.logit_blocks import (
    BLOCK,
    blocks_of,
    largest,
    times_nodes,
    without,
)
from stages.cache_teacher.targets.sampling import draw
from stages.cache_teacher.targets.teacher_head import Head
from stages.compute.compiling import Compiled

_ROWS_IN_CPU_CACHE = 4  # what is not compiled passes over its logits many times
_CPU_CHUNK = 256  # a processor is no faster with more, and may be stopped between chunks
_ROWS_TO_COMPILE = 128


class Targets(NamedTuple):
    """Targets of P positions; those that the kind does not have are empty."""

    log_z_P: Tensor
    """log Z − z_max at T = 1; not finite where a logit is not."""
    next_logprob_P: Tensor
    """Log-probability of the label at T = 1."""
    num_kept_P: Tensor
    """int32, how many of the K are kept."""
    kept_ids_PK: Tensor
    """int32, in order of falling logit, the lowest id first on a tie."""
    gaps_PK: Tensor
    """Largest logit minus this one, in nats at T = 1; 0 for the first."""
    tail_log_mass_PN: Tensor
    """log Σ exp((z_j − z_max)·s) over ids that are not kept; −inf where none is left out."""
    drawn_ids_PM: Tensor
    """int32, rising; an id is there as often as it was drawn. They mean nothing without a tail."""
    drawn_gaps_PM: Tensor
    """Largest logit minus that of the drawn id."""


class TargetMaker:
    """Makes the targets of one spec with one head."""

    def __init__(
        self,
        head: Head,
        spec: TargetSpec,
        *,
        chunk: int,
        compile: Literal["auto", "on", "off"],
    ) -> None:
        """``chunk`` positions have their logits at once. ``compile`` as in the settings."""
        self._head = head
        self._chunk = min(chunk, _CPU_CHUNK) if head.device.type == "cpu" else chunk
        self.reduction = Compiled(
            partial(_chunk, spec=spec),
            compile,
            head.device,
            what="targets are made",
            setting="cache_teacher.compile",
        )

    @torch.inference_mode()
    def compile(self, num_draws: int) -> None:
        """Compile now what ``make`` would compile when it is first called, if it is to be."""
        if not self.reduction.is_compiled:
            return
        num_ids = -(-self._head.vocab_size // BLOCK) * BLOCK
        device, num_rows = self._head.device, min(self._chunk, _ROWS_TO_COMPILE)
        self.reduction(
            torch.zeros(num_rows, num_ids, device=device),
            torch.zeros(num_rows, device=device, dtype=torch.int64),
            torch.zeros(num_rows, num_draws, device=device, dtype=torch.float64),
        )

    def make(
        self,
        hidden_PD: Tensor,
        labels_P: Tensor,
        uniform_PM: Tensor,
        check: Callable[[], None] = lambda: None,
    ) -> Targets:
        """Targets of P positions. ``uniform_PM`` has no columns where nothing is drawn. ``check``
        is called before every chunk, and may raise."""
        parts = []
        for start in range(0, max(1, len(hidden_PD)), self._chunk):
            check()
            chunk = slice(start, start + self._chunk)
            logits_CV = self._head.padded_logits(hidden_PD[chunk])
            parts.append(self.reduce(logits_CV, labels_P[chunk], uniform_PM[chunk]))
        return _joined(parts)

    def reduce(self, logits_CV: Tensor, labels_C: Tensor, uniform_CM: Tensor) -> Targets:
        """Targets of the positions of a chunk."""
        size = max(1, len(logits_CV))
        if logits_CV.device.type == "cpu" and not self.reduction.is_compiled:
            size = _ROWS_IN_CPU_CACHE
        parts = []
        for start in range(0, max(1, len(logits_CV)), size):
            few = slice(start, start + size)
            parts.append(Targets(*self.reduction(logits_CV[few], labels_C[few], uniform_CM[few])))
        return _joined(parts)


def _joined(parts: Sequence[Targets]) -> Targets:
    if len(parts) == 1:
        return parts[0]
    return Targets(*(torch.cat(columns) for columns in zip(*parts, strict=True)))


def _chunk(
    logits_CV: Tensor, labels_C: Tensor, uniform_CM: Tensor, *, spec: TargetSpec
) -> tuple[Tensor, ...]:
    """The fields of ``Targets`` for the positions of a chunk."""
    nodes = tuple(sorted({*spec.inverse_temperatures, 1.0}))
    blocks = blocks_of(logits_CV, nodes)
    z_max_C1 = blocks.largest_C1()
    label_gap_C1 = z_max_C1 - logits_CV.gather(1, labels_C[:, None])
    if spec.kind == "sampled":
        last_kept_C, s = None, spec.inverse_temperatures[0]
        log_z_C1 = blocks.at(len(nodes) - 1).log_mass((1.0,)) - z_max_C1
        kept = _nothing_kept(labels_C, z_max_C1)
    else:
        found = largest(logits_CV, blocks, spec.top_k)
        gaps_CK = z_max_C1 - found.values_CK
        num_kept_C = torch.full_like(labels_C, spec.top_k)
        if spec.keep_mass < 1:
            log_z_C1 = blocks.at(len(nodes) - 1).log_mass((1.0,)) - z_max_C1
            num_kept_C = _num_needed((-gaps_CK - log_z_C1).exp(), spec.keep_mass)
        last_kept_C = found.keys_CK.gather(1, num_kept_C[:, None] - 1)[:, 0]
        blocks = without(logits_CV, blocks, found, last_kept_C, nodes)
        tail_CN = blocks.log_mass(nodes) - times_nodes(z_max_C1, nodes)
        is_kept_CK = torch.arange(spec.top_k, device=gaps_CK.device) < num_kept_C[:, None]
        kept_log_mass_C1 = torch.logsumexp(
            -gaps_CK.masked_fill(~is_kept_CK, torch.inf), 1, keepdim=True
        )
        log_z_C1 = torch.logaddexp(kept_log_mass_C1, tail_CN[:, -1:])
        kept = (num_kept_C.int(), found.ids_CK.int(), gaps_CK, tail_CN)
        s = spec.draw_inverse_temperature or 1.0
    if spec.kind == "top_k":
        drawn_CM = torch.empty_like(uniform_CM, dtype=torch.int64)
    else:
        drawn_CM = draw(logits_CV, blocks, last_kept_C, uniform_CM, (nodes.index(s), s))
        drawn_CM = drawn_CM.sort(1).values
    drawn_gaps_CM = z_max_C1 - logits_CV.gather(1, drawn_CM)
    next_C = (-label_gap_C1 - log_z_C1)[:, 0]
    return log_z_C1[:, 0], next_C, *kept, drawn_CM.int(), drawn_gaps_CM


def _nothing_kept(labels_C: Tensor, z_max_C1: Tensor) -> tuple[Tensor, ...]:
    """Number, ids, gaps and tail where all ids are drawn."""
    none_C0 = z_max_C1[:, :0]
    return torch.zeros_like(labels_C, dtype=torch.int32), none_C0.int(), none_C0, none_C0


def _num_needed(probabilities_CK: Tensor, keep_mass: float) -> Tensor:
    """The smallest n whose n largest probabilities reach ``keep_mass``; all K if none does."""
    num_kept_K = probabilities_CK.shape[1]
    if keep_mass == 1:
        return torch.full_like(probabilities_CK[:, 0], num_kept_K, dtype=torch.int64)
    short_CK = probabilities_CK.double().cumsum(1) < keep_mass
    return (short_CK.sum(1) + 1).clamp_max(num_kept_K)
