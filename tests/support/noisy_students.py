"""Students whose every weight matters, and ids for them."""

from typing import Any

import torch
from torch import Tensor

from stages.train_student.modeling.distil_xlstm import auto_classes  # noqa: F401 (registers them)
from stages.train_student.modeling.distil_xlstm.build import build_student
from stages.train_student.modeling.distil_xlstm.settings import DistilXLSTMSettings

WIDTH, VOCAB, ROWS, EOS = 32, 90, 100, 3
CONFIG = DistilXLSTMSettings(num_blocks=4, slstm_at=(0, 2), num_heads=4, qkv_block_size=8)


def make_student(
    seed: int = 0, *, embedding: Tensor | None = None, head: Tensor | None = None
) -> Any:
    return build_student(
        CONFIG,
        hidden_size=WIDTH,
        vocab_size=VOCAB,
        head_rows=ROWS,
        eos_token_id=EOS,
        embedding=embedding,
        head=head,
        seed=seed,
    )


def make_noisy_student(dtype: torch.dtype = torch.bfloat16) -> Any:
    """No weight is zero, and the head is not the embedding: the start values hide too much."""
    generator = torch.Generator().manual_seed(5)
    embedding, head = torch.randn(2, ROWS, WIDTH, generator=generator).to(dtype)
    student = make_student(embedding=embedding, head=head)
    with torch.no_grad():
        for parameter in student.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.1)
    return student.eval()


def make_ids(batch: int, num_positions: int) -> Tensor:
    return torch.randint(VOCAB, (batch, num_positions), generator=torch.Generator().manual_seed(1))
