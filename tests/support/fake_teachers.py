"""A teacher for fits: states of its tokens alone, no model."""

from typing import Any

import numpy as np
import torch

from stages.cache_teacher.corpus.packing import PackedUnit
from stages.cache_teacher.targets.teacher_head import Head

_V, _D, _T = 60, 10, 64


class FakeTeacher:
    """States that depend on their token alone, and spread unevenly; a random head."""

    device = torch.device("cpu")

    def __init__(self, vocab_size: int = _V) -> None:
        generator = torch.Generator().manual_seed(1)
        spread = torch.logspace(0.5, -1, _D)
        rotation = torch.linalg.qr(torch.randn(_D, _D, generator=generator))[0]
        self.states_XD = torch.randn(1000, _D, generator=generator) * spread @ rotation + 3
        self.head = Head(torch.randn(vocab_size, _D, generator=generator) * 0.4, vocab_size)

    def forward(
        self, input_ids: Any, document_starts: Any, *, layers: Any, check: Any = None
    ) -> tuple[torch.Tensor, list[torch.Tensor]]:
        return self.states_XD[torch.from_numpy(input_ids).long()], []


def unit(num_rows: int = 16) -> PackedUnit:
    random = np.random.default_rng(2)
    return PackedUnit(
        token_ids_RT=random.integers(0, 1000, (num_rows, _T + 1)).astype(np.int32),
        document_starts=[np.array([5, 40], np.int32)] * num_rows,
        num_dropped_tokens=0,
    )
