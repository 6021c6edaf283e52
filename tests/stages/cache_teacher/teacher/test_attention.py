"""What each attention is told of packed documents, and that all of them attend alike.

B rows, T positions, N = B·T, H heads, G key-value heads, E width of a head.
"""

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn.attention import varlen
from torch.nn.functional import scaled_dot_product_attention

from stages.cache_teacher.teacher import attention
from stages.cache_teacher.teacher.attention import body_inputs, varlen_attention

CPU = torch.device("cpu")
STARTS = [np.array(starts, np.int32) for starts in ([], [3], [1, 2, 7], [8])]
IDS_BT = np.arange(32, dtype=np.int32).reshape(4, 8)
ENDS = [0, 8, 11, 16, 17, 18, 23, 24, 32]


def heads(num_heads: int, num_rows: int = 1, length: int = 32, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(num_rows, num_heads, length, 8, generator=generator)


def states(num_rows: int = 1, length: int = 32) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Queries of four heads, keys and values of two."""
    return (
        heads(4, num_rows, length, seed=0),
        heads(2, num_rows, length, seed=1),
        heads(2, num_rows, length, seed=2),
    )


def documents_N() -> torch.Tensor:
    """Which of ``IDS_BT``'s documents a position belongs to, all rows as one."""
    return torch.repeat_interleave(torch.tensor(ENDS).diff())


def masked_attention(scaling: float) -> torch.Tensor:
    """All documents under a mask, [1, N, H, E] in float64."""
    document_N = documents_N()
    mask_NN = (document_N[:, None] == document_N).tril()
    query, key, value = (tensor.double() for tensor in states())
    out = scaled_dot_product_attention(
        query, key, value, attn_mask=mask_NN, scale=scaling, enable_gqa=True
    )
    return out.transpose(1, 2)


def call(**changes: Any) -> torch.Tensor:
    arguments: dict[str, Any] = {
        "attention_mask": None,
        "scaling": 0.5,
        "dropout": 0.0,
        "cu_seq_lens_q": torch.tensor(ENDS, dtype=torch.int32),
        "max_length_q": 8,
    }
    query, key, value = states()
    out, weights = varlen_attention(torch.nn.Identity(), query, key, value, **(arguments | changes))
    assert weights is None
    return out


def test_masks_keep_documents_apart() -> None:
    inputs = body_inputs(IDS_BT, STARTS, "sdpa", torch.float32, CPU)
    assert inputs["input_ids"].dtype == inputs["position_ids"].dtype == torch.int64
    assert inputs["input_ids"].tolist() == IDS_BT.tolist()
    assert inputs["position_ids"].tolist() == [
        [0, 1, 2, 3, 4, 5, 6, 7],
        [0, 1, 2, 0, 1, 2, 3, 4],
        [0, 0, 0, 1, 2, 3, 4, 0],
        [0, 1, 2, 3, 4, 5, 6, 7],  # index 8 belongs to the last label alone
    ]
    mask = inputs["attention_mask"]
    assert mask.shape == (4, 1, 8, 8)
    for row, starts in enumerate(STARTS):
        document_T = np.searchsorted(starts, np.arange(8), side="right")
        expected_TT = np.tril(document_T[:, None] == document_T)
        assert mask[row, 0].tolist() == expected_TT.tolist()
    added = body_inputs(IDS_BT, STARTS, "eager", torch.bfloat16, CPU)["attention_mask"]
    assert added.dtype == torch.bfloat16
    assert torch.equal(added == 0, mask)
    assert torch.equal(added == torch.finfo(torch.bfloat16).min, ~mask)


@pytest.mark.parametrize("name", ["varlen", "flash_attention_2"])
def test_varlen_kernels_receive_one_row_and_the_document_ends(name: str) -> None:
    inputs = body_inputs(IDS_BT, STARTS, name, torch.bfloat16, CPU)
    assert inputs["attention_mask"] is None
    assert inputs["input_ids"].tolist() == [list(range(32))]
    lengths = np.diff(ENDS)
    assert inputs["position_ids"].tolist() == [[p for length in lengths for p in range(length)]]
    for side in ("q", "k"):
        assert inputs[f"cu_seq_lens_{side}"].tolist() == ENDS
        assert inputs[f"cu_seq_lens_{side}"].dtype == torch.int32
        assert inputs[f"max_length_{side}"] == 8


@pytest.mark.parametrize("scaling", [0.5, 1.0])
def test_varlen_attention_equals_attention_under_the_mask(scaling: float) -> None:
    out = call(scaling=scaling)
    assert out.shape == (1, 32, 4, 8)
    torch.testing.assert_close(out.double(), masked_attention(scaling), atol=1e-6, rtol=0)


def test_varlen_without_document_ends_treats_rows_as_documents() -> None:
    query, key, value = states(num_rows=3, length=8)
    out, _ = varlen_attention(torch.nn.Identity(), query, key, value, attention_mask=None)
    expected = scaled_dot_product_attention(query, key, value, is_causal=True, enable_gqa=True)
    torch.testing.assert_close(out, expected.transpose(1, 2), atol=1e-6, rtol=0)


def test_flex_attention_gives_the_same_result() -> None:
    """A third implementation, not ours, from a rule in place of a mask."""
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    document_N = documents_N()

    def allowed(batch: Any, head: Any, query: Any, key: Any) -> Any:
        return (document_N[query] == document_N[key]) & (key <= query)

    blocks = create_block_mask(allowed, None, None, 32, 32, device="cpu")
    query, key, value = states()
    with pytest.warns(UserWarning, match="flex_attention called without torch.compile"):
        out = flex_attention(query, key, value, block_mask=blocks, scale=0.5, enable_gqa=True)
    assert isinstance(out, torch.Tensor)
    torch.testing.assert_close(call(), out.transpose(1, 2), atol=1e-6, rtol=0)


@pytest.mark.parametrize("asks_for_gqa", [True, False])
def test_the_kernel_is_called_as_pytorch_documents_it(
    monkeypatch: pytest.MonkeyPatch, asks_for_gqa: bool
) -> None:
    """In place of the kernel, which needs a GPU, a function with its signature."""
    calls: list[dict[str, Any]] = []

    def kernel(
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        cu_seq_q: torch.Tensor,
        cu_seq_k: torch.Tensor,
        max_q: int,
        max_k: int,
        *,
        scale: float,
        window_size: tuple[int, int],
        **flags: bool,
    ) -> torch.Tensor:
        assert cu_seq_q.dtype == cu_seq_k.dtype == torch.int32
        assert cu_seq_q.tolist() == cu_seq_k.tolist()
        assert (max_q, max_k, window_size) == (8, 8, (-1, 0))
        calls.append(flags)
        parts = [
            scaled_dot_product_attention(
                query[begin:end].transpose(0, 1),
                key[begin:end].transpose(0, 1),
                value[begin:end].transpose(0, 1),
                is_causal=True,
                scale=scale,
                enable_gqa=True,
            ).transpose(0, 1)
            for begin, end in pairwise(cu_seq_q.tolist())
        ]
        return torch.cat(parts)

    def newer(*arguments: Any, enable_gqa: bool = False, **options: Any) -> torch.Tensor:
        return kernel(*arguments, enable_gqa=enable_gqa, **options)

    monkeypatch.setattr(attention, "has_kernel", lambda query: True)
    monkeypatch.setattr(varlen, "varlen_attn", newer if asks_for_gqa else kernel)
    torch.testing.assert_close(call().double(), masked_attention(0.5), atol=1e-6, rtol=0)
    assert calls == [{"enable_gqa": True} if asks_for_gqa else {}]


def test_the_installed_varlen_kernel_has_the_documented_signature() -> None:
    import inspect

    parameters = inspect.signature(varlen.varlen_attn).parameters
    names = ["query", "key", "value", "cu_seq_q", "cu_seq_k", "max_q", "max_k"]
    assert list(parameters)[:7] == names
    assert {"scale", "window_size"} <= set(parameters)


@pytest.mark.parametrize(
    ("device", "dtype", "capability", "expected"),
    [
        ("cpu", torch.bfloat16, (9, 0), False),
        ("cuda", torch.float32, (9, 0), False),
        ("cuda", torch.float16, (7, 5), False),
        ("cuda", torch.float16, (8, 0), True),
        ("cuda", torch.bfloat16, (9, 0), True),
    ],
)
def test_the_varlen_kernel_needs_a_recent_gpu_and_half_precision(
    monkeypatch: pytest.MonkeyPatch,
    device: str,
    dtype: torch.dtype,
    capability: tuple[int, int],
    expected: bool,
) -> None:
    class Query:
        is_cuda = device == "cuda"

    query: Any = Query()
    query.dtype, query.device = dtype, torch.device(device)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert attention.has_kernel(query) is expected


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"softcap": 5.0}, "varlen attention knows no softcap"),
        ({"s_aux": torch.zeros(4)}, "knows no s_aux"),
        ({"position_bias": torch.zeros(4)}, "knows no position_bias"),
        ({"attention_mask": torch.ones(1)}, "knows no attention_mask"),
        ({"sliding_window": 7}, "knows no sliding_window"),
    ],
)
def test_varlen_refuses_options_it_would_ignore(changes: dict[str, Any], problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        call(**changes)


def test_a_sliding_window_of_the_longest_document_changes_nothing() -> None:
    assert torch.equal(call(sliding_window=8, softcap=None), call())
