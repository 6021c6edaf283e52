"""The mLSTM in chunks on a GPU, against one chunk (the parallel form) in float64."""

import pytest
import torch

from stages.train_student.modeling.layers.document_masks import lay_out_documents
from stages.train_student.modeling.layers.mlstm import mlstm

pytestmark = pytest.mark.gpu
BATCH, HEADS, POSITIONS, WIDTH = 2, 3, 96, 32
# In bfloat16 a gate's gradient is the difference of sums that were rounded.
BOUNDS = {torch.float32: 2e-4, torch.bfloat16: 0.15}


@pytest.mark.parametrize("dtype", BOUNDS, ids=str)
@pytest.mark.parametrize("chunk_length", [1, 32, 40, POSITIONS])
@pytest.mark.parametrize("has_documents", [True, False])
def test_chunks_equal_the_parallel_form_in_float64(
    device: torch.device, dtype: torch.dtype, chunk_length: int, has_documents: bool
) -> None:
    generator = torch.Generator().manual_seed(0)
    shape = (BATCH, HEADS, POSITIONS, WIDTH)
    qkv = [torch.randn(shape, generator=generator).to(dtype) for _ in range(3)]
    gates = [torch.randn(shape[:3], generator=generator) * 2 for _ in range(2)]
    weights = torch.randn(shape, generator=generator)
    is_start = None
    if has_documents:
        is_start = torch.zeros(BATCH, POSITIONS, dtype=torch.bool)
        is_start[0, [7, 40, 41]] = is_start[1, 80] = True
    found = _results(qkv, gates, weights, is_start, device, chunk_length)
    exact = [part.double() for part in qkv], [part.double() for part in gates]
    expected = _results(*exact, weights.double(), is_start, torch.device("cpu"), POSITIONS)
    for ours, exactly in zip(found, expected, strict=True):
        difference = torch.linalg.vector_norm(ours.cpu().double() - exactly)
        assert difference < BOUNDS[dtype] * torch.linalg.vector_norm(exactly)


def _results(
    qkv: list[torch.Tensor],
    gates: list[torch.Tensor],
    weights: torch.Tensor,
    is_start: torch.Tensor | None,
    device: torch.device,
    chunk_length: int,
) -> tuple[torch.Tensor, ...]:
    """Hidden states, and the gradients by all inputs."""
    leaves = [part.to(device).requires_grad_() for part in (*qkv, *gates)]
    like = torch.empty(BATCH, POSITIONS, 1, device=device)
    layout = lay_out_documents(is_start, like, 4, has_state=False)
    q, k, v, i, f = leaves
    hidden, _ = mlstm((q, k, v), (i, f), layout, None, chunk_length)
    scalar = (hidden.to(weights.dtype) * weights.to(device)).sum()
    return (hidden.detach(), *torch.autograd.grad(scalar, leaves))
