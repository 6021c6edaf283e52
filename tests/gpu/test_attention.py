"""Attention of packed documents on a GPU: by PyTorch's kernel, each as if it were alone.

T positions of all documents, H heads, G key-value heads, E width of a head.
"""

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

from stages.cache_teacher.teacher.attention import has_kernel, varlen_attention
from stages.cache_teacher.teacher.teacher import Teacher
from stages.cache_teacher.teacher.teacher_files import resolve_teacher
from tests.support.tiny import save_tiny_teacher, tiny_cache_config

pytestmark = pytest.mark.gpu
ENDS = (0, 1, 130, 131, 200, 457, 512)
BOUNDS = {torch.bfloat16: 2e-2, torch.float16: 3e-3}


@pytest.mark.parametrize("dtype", BOUNDS, ids=str)
@pytest.mark.parametrize(("heads", "kv_heads", "width"), [(4, 2, 64), (12, 2, 128), (4, 4, 8)])
def test_packed_documents_attend_as_each_does_alone(
    device: torch.device, dtype: torch.dtype, heads: int, kv_heads: int, width: int
) -> None:
    generator = torch.Generator().manual_seed(width)
    query, key, value = (
        torch.randn(1, num, ENDS[-1], width, generator=generator).to(device, dtype)
        for num in (heads, kv_heads, kv_heads)
    )
    assert has_kernel(query) == (device.type == "cuda")
    found_BTHE, _ = varlen_attention(
        torch.nn.Identity(),
        query,
        key,
        value,
        None,
        scaling=0.3,
        cu_seq_lens_q=torch.tensor(ENDS, dtype=torch.int32, device=device),
        max_length_q=max(end - begin for begin, end in pairwise(ENDS)),
    )
    for begin, end in pairwise(ENDS):
        q, k, v = (part[:, :, begin:end].double().cpu() for part in (query, key, value))
        expected = scaled_dot_product_attention(
            q, k, v, is_causal=True, scale=0.3, enable_gqa=True
        ).transpose(1, 2)
        found = found_BTHE[:, begin:end].double().cpu()
        torch.testing.assert_close(found, expected, rtol=BOUNDS[dtype], atol=BOUNDS[dtype])


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
def test_a_teacher_s_states_of_a_document_do_not_depend_on_the_row_around_it(
    device: torch.device, tmp_path: Path, dtype: str
) -> None:
    config = tiny_cache_config(
        save_tiny_teacher(tmp_path), "no-corpus", teacher_dtype=dtype, device=str(device)
    )
    teacher = Teacher(resolve_teacher(config), device)
    assert teacher.source.spec.attention == ("sdpa" if dtype == "float32" else "varlen")
    ids_BT = (np.arange(128, dtype=np.int32) * 7 % 300).reshape(2, 64)
    starts = [np.array(places, np.int32) for places in ([5, 40], [63])]
    packed_BTD, _ = teacher.forward(ids_BT, starts, layers=())
    for row, begin, end in ((0, 0, 5), (0, 5, 40), (0, 40, 64), (1, 0, 63)):
        alone_BTD, _ = teacher.forward(
            ids_BT[row : row + 1, begin:end], [np.empty(0, np.int32)], layers=()
        )
        found, expected = packed_BTD[row, begin:end].float(), alone_BTD[0].float()
        bound = 1e-4 if dtype == "float32" else 8 * torch.finfo(packed_BTD.dtype).eps
        assert (found - expected).abs().max() <= bound * expected.abs().max()
