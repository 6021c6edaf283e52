"""Targets that are taken from logits: ids of each position, kept or drawn, and log-masses.

In: last hidden states [P, D], labels [P], uniform numbers [P, M] where ids are drawn. Out:
``IdTargets`` on the same device; nothing here waits for it. The head runs over a chunk of positions
at a time, and full logits never leave the kind's reduction: memory is chunk × vocabulary, whatever
the number of positions. P positions, C of a chunk, D width, V vocabulary, K kept, N inverse
temperatures, M samples, J components.
"""

from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from stages.cache_teacher.targets.coded.tail_moment import MomentMaker
from stages.cache_teacher.targets.logit_blocks import BLOCK
from stages.cache_teacher.targets.teacher_head import Head
from stages.compute.compiling import Compiled

_ROWS_IN_CPU_CACHE = 4  # what is not compiled passes over its logits many times
_CPU_CHUNK = 256  # a processor is no faster with more, and may be stopped between chunks
_ROWS_TO_COMPILE = 128


Reduction = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, ...]]
"""Logits [C, V], labels [C] and uniform numbers [C, M] to the fields of ``IdTargets`` but for the
moments."""


class IdTargets(NamedTuple):
    """Targets of P positions; those that the kind does not have are empty, such as [P, 0]."""

    log_z_P: Tensor
    """log Z − z_max at T = 1; not finite where a logit is not."""
    next_logprob_P: Tensor
    """Log-probability of the label at T = 1."""
    num_kept_P: Tensor
    """int32, how many of the K are kept."""
    kept_ids_PK: Tensor
    """int32, in order of falling logit, the lowest id first on a tie."""
    logit_gaps_PK: Tensor
    """Largest logit minus this one, in nats at T = 1; 0 for the first."""
    tail_log_mass_PN: Tensor
    """log Σ exp((z_j − z_max)·s) over ids that are not kept; −inf where none is left out."""
    sample_ids_PM: Tensor
    """int32, rising; an id is there as often as it was drawn. They mean nothing without a tail."""
    sample_logit_gaps_PM: Tensor
    """Largest logit minus that of the drawn id."""
    moment_PJ: Tensor
    """int16, coefficients of the tail's moments."""

    @property
    def is_finite_P(self) -> Tensor:
        """bool, whether all numbers of a position are."""
        return torch.isfinite(self.log_z_P) & torch.isfinite(self.logit_gaps_PK).all(1)

    def mapped(self, function: Callable[[Tensor], Tensor]) -> "IdTargets":
        """The same with each tensor as ``function`` returns it."""
        return IdTargets(*map(function, self))


class TargetMaker:
    """Makes targets with one head."""

    def __init__(
        self,
        head: Head,
        reduction: Reduction,
        *,
        chunk: int,
        compile: Literal["auto", "on", "off"],
        moment: MomentMaker | None = None,
    ) -> None:
        """``reduction`` is the kind's. ``chunk`` positions have their logits at once. ``moment``
        makes the tail's moments, if there are to be any.

        ``compile`` as in the settings.
        """
        self._head = head
        self._chunk = min(chunk, _CPU_CHUNK) if head.device.type == "cpu" else chunk
        self._moment = moment
        self.reduction = Compiled(
            reduction,
            compile,
            head.device,
            what="targets are made",
            setting="cache_teacher.compile",
        )

    @torch.inference_mode()
    def compile(self, num_uniform: int) -> None:
        """Compile now what ``make`` would compile when it is first called, if it is to be."""
        if not self.reduction.is_compiled:
            return
        num_ids = -(-self._head.vocab_size // BLOCK) * BLOCK
        device, num_rows = self._head.device, min(self._chunk, _ROWS_TO_COMPILE)
        self.reduce(
            torch.zeros(num_rows, num_ids, device=device),
            torch.zeros(num_rows, device=device, dtype=torch.int64),
            torch.zeros(num_rows, num_uniform, device=device, dtype=torch.float64),
        )

    def make(
        self,
        hidden_PD: Tensor,
        labels_P: Tensor,
        uniform_PM: Tensor,
        check: Callable[[], None] = lambda: None,
    ) -> IdTargets:
        """Targets of P positions. ``uniform_PM`` has no columns where nothing is drawn. ``check``
        is called before every chunk, and may raise."""
        parts = []
        for start in range(0, max(1, len(hidden_PD)), self._chunk):
            check()
            chunk = slice(start, start + self._chunk)
            logits_CV = self._head.padded_logits(hidden_PD[chunk])
            parts.append(self.reduce(logits_CV, labels_P[chunk], uniform_PM[chunk]))
        return _joined(parts)

    def reduce(self, logits_CV: Tensor, labels_C: Tensor, uniform_CM: Tensor) -> IdTargets:
        """Targets of the positions of a chunk."""
        size = max(1, len(logits_CV))
        if logits_CV.device.type == "cpu" and not self.reduction.is_compiled:
            size = _ROWS_IN_CPU_CACHE
        parts = []
        for start in range(0, max(1, len(logits_CV)), size):
            few = slice(start, start + size)
            fields = self.reduction(logits_CV[few], labels_C[few], uniform_CM[few])
            parts.append(IdTargets(*(*fields, self._moments(logits_CV[few], fields))))
        return _joined(parts)

    def _moments(self, logits_CV: Tensor, fields: tuple[Tensor, ...]) -> Tensor:
        """Coefficients of the tail's moments, [C, J]; [C, 0] without."""
        if self._moment is None:
            return fields[0].new_empty((len(logits_CV), 0), dtype=torch.int16)
        _, _, *kept, _, _ = fields
        return self._moment.coefficients(logits_CV, tuple(kept))


def _joined(parts: Sequence[IdTargets]) -> IdTargets:
    if len(parts) == 1:
        return parts[0]
    return IdTargets(*(torch.cat(columns) for columns in zip(*parts, strict=True)))
