"""The teacher's head: hidden states become logits, in float32, padded to whole blocks of ids.

In: last hidden states [C, D]. Out: logits [C, V]. Rows that stand for no id are left out of every
sum: their logits are −inf. C positions, D width, V ids, padded to a multiple of ``BLOCK``.
"""

import torch
from torch import Tensor

from stages.cache_teacher.targets.logit_blocks import BLOCK


class Head:
    """The teacher's head in the precision it is multiplied in."""

    def __init__(self, weight: Tensor, vocab_size: int) -> None:
        num_padded = -(-vocab_size // BLOCK) * BLOCK
        head_VD = weight.detach()[:num_padded]  # rows that pad the teacher's own head will do
        # Half-precision products with float32 sums exist on GPUs alone; elsewhere pay once here.
        self._is_mixed = head_VD.is_cuda and head_VD.dtype in (torch.bfloat16, torch.float16)
        if not self._is_mixed:
            head_VD = head_VD.float()
        if len(head_VD) < num_padded:
            head_VD = torch.nn.functional.pad(head_VD, (0, 0, 0, num_padded - len(head_VD)))
        self._head_DV = head_VD.T
        self._logits_CV = torch.empty(0, num_padded, device=weight.device)
        self.vocab_size = vocab_size
        self.device = weight.device

    @property
    def weight_VD(self) -> Tensor:
        """The rows that stand for ids, in the precision they are multiplied in."""
        return self._head_DV.T[: self.vocab_size]

    @torch.inference_mode()
    def padded_logits(self, hidden_CD: Tensor) -> Tensor:
        """Logits [C, V] summed and returned in float32: bfloat16 would round by 0.06 near 19.

        The next call overwrites them. Memory that is new every time would be cleared page by page,
        which on a CPU takes as long as reading it.
        """
        if len(self._logits_CV) < len(hidden_CD):
            self._logits_CV = self._logits_CV.new_empty(len(hidden_CD), self._head_DV.shape[1])
        logits_CV = self._logits_CV[: len(hidden_CD)]
        if self._is_mixed:
            half_CD = hidden_CD.to(self._head_DV.dtype)
            torch.mm(half_CD, self._head_DV, out_dtype=torch.float32, out=logits_CV)
        else:
            torch.mm(hidden_CD.float(), self._head_DV, out=logits_CV)
        logits_CV[:, self.vocab_size :] = -torch.inf
        return logits_CV

    def logits(self, hidden_CD: Tensor) -> Tensor:
        """Those of ids that exist, [C, vocab_size]; they stay as they are."""
        return self.padded_logits(hidden_CD)[:, : self.vocab_size].clone()
