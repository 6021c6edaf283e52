"""Attention that keeps the documents of a row apart: the implementation and its arguments.

In: rows of ids and the places where documents start. Out: the inputs of the teacher's body. Called
by ``teacher`` and ``teacher_files``. ``eager`` and ``sdpa`` are given rows and a mask, under which
a position sees its own document up to itself. ``varlen`` and ``flash_attention_2`` are given all
rows as one, with the ends of its documents: what a mask would forbid is never computed.
B rows, T positions, N = B·T, H heads, G key-value heads, E width of a head.
"""

import inspect
from collections.abc import Callable, Sequence
from functools import cache
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch.nn.functional import scaled_dot_product_attention

from stages.cache_teacher.corpus.packing import IntArray
from stages.cache_teacher.teacher.device_queue import to_device

VARLEN = "varlen"
MASKED = ("eager", "sdpa")
"""Those that are given rows and a mask; the others are given one row and its documents' ends."""
VARLEN_TESTED = (
    "gemma3_text",
    "glm4",
    "gpt_neox",
    "granite",
    "llama",
    "mistral",
    "mixtral",
    "olmo2",
    "olmo3",
    "olmoe",
    "phi3",
    "qwen2",
    "qwen2_moe",
    "qwen3",
    "qwen3_moe",
    "smollm3",
    "starcoder2",
)
"""Architectures (``model_type``) that tell their attention where documents end, and are tested."""
_WIDEST_HEAD = 256  # of the flash kernels, whose head widths are multiples of 8


def choose_attention(asked: str, dtype: str, text_config: Any) -> str:
    """The implementation that ``auto`` stands for: a function of model and precision alone.

    So every machine that works on a cache chooses the same one. Others than ``auto`` stay.
    """
    if asked != "auto":
        return asked
    if getattr(text_config, "attn_logit_softcapping", None) is not None:
        return "eager"
    if dtype == "float32" or text_config.model_type not in VARLEN_TESTED:
        return "sdpa"
    width = getattr(text_config, "head_dim", None) or (
        text_config.hidden_size // text_config.num_attention_heads
    )
    return VARLEN if width % 8 == 0 and width <= _WIDEST_HEAD else "sdpa"


def register_varlen() -> None:
    """Make ``varlen`` known to transformers."""
    from transformers import AttentionInterface

    AttentionInterface.register(VARLEN, varlen_attention)


def body_inputs(
    ids_BT: IntArray,
    document_starts: Sequence[IntArray],
    attention: str,
    dtype: torch.dtype,
    device: torch.device,
) -> dict[str, Any]:
    """Arguments of the body's forward pass; positions count from 0 in every document.

    A document is taken to start at index 0 of every row; index T belongs to the last label alone.
    """
    is_start_BT = _starts_of(document_starts, ids_BT.shape)
    positions_BT = _positions(is_start_BT)
    ids_BT = ids_BT.astype(np.int64)
    if attention in MASKED:
        return {
            "input_ids": to_device(ids_BT, device),
            "position_ids": to_device(positions_BT, device),
            "attention_mask": _mask(to_device(is_start_BT, device), attention, dtype),
        }
    ends = np.append(np.flatnonzero(is_start_BT), is_start_BT.size).astype(np.int32)
    longest = int(np.diff(ends).max())
    on_device = to_device(ends, device)
    return {
        "input_ids": to_device(ids_BT.reshape(1, -1), device),
        "position_ids": to_device(positions_BT.reshape(1, -1), device),
        "attention_mask": None,
        "cu_seq_lens_q": on_device,
        "cu_seq_lens_k": on_device,
        "max_length_q": longest,
        "max_length_k": longest,
    }


def varlen_attention(
    module: torch.nn.Module,
    query_BHTE: torch.Tensor,
    key_BGTE: torch.Tensor,
    value_BGTE: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    scaling: float | None = None,
    sliding_window: int | None = None,
    cu_seq_lens_q: torch.Tensor | None = None,
    max_length_q: int | None = None,
    **others: Any,
) -> tuple[torch.Tensor, None]:
    """Causal attention within each document, [B, T, H, E]; called by transformers' layers.

    ``cu_seq_lens_q`` are the documents' ends in all rows as one, int32, from 0 to N; without them
    every row is one document. Raises ValueError for what would change the scores in other ways.
    """
    num_rows, _, num_positions, _ = query_BHTE.shape
    if cu_seq_lens_q is None:
        cu_seq_lens_q = torch.arange(
            0, num_rows * num_positions + 1, num_positions, device=query_BHTE.device
        ).int()
    longest = num_positions if max_length_q is None else max_length_q
    extras = [
        name for name in ("softcap", "s_aux", "position_bias") if others.get(name) is not None
    ]
    if attention_mask is not None:
        extras.append("attention_mask")
    if sliding_window is not None and sliding_window < longest:
        extras.append("sliding_window")
    if extras:
        raise ValueError(f"{VARLEN} attention knows no {', '.join(extras)}")
    query_NHE, key_NGE, value_NGE = (
        states.transpose(1, 2).flatten(0, 1) for states in (query_BHTE, key_BGTE, value_BGTE)
    )
    attend = _by_kernel if has_kernel(query_NHE) else _by_document
    out_NHE = attend(query_NHE, key_NGE, value_NGE, cu_seq_lens_q, longest, scaling)
    return out_NHE.view(num_rows, num_positions, *out_NHE.shape[1:]), None


def has_kernel(query: torch.Tensor) -> bool:
    """Whether PyTorch has a kernel for all documents at once: on GPUs since Ampere, in half."""
    if not query.is_cuda or query.dtype not in (torch.float16, torch.bfloat16):
        return False
    return torch.version.hip is not None or torch.cuda.get_device_capability(query.device) >= (8, 0)


@cache  # every layer of every forward pass asks
def _options(kernel: Callable[..., Any]) -> dict[str, Any]:
    """Fewer key-value heads than heads must be announced; before PyTorch 2.12 they need not be."""
    return {"enable_gqa": True} if "enable_gqa" in inspect.signature(kernel).parameters else {}


def _by_kernel(
    query_NHE: torch.Tensor,
    key_NGE: torch.Tensor,
    value_NGE: torch.Tensor,
    ends: torch.Tensor,
    longest: int,
    scaling: float | None,
) -> torch.Tensor:
    from torch.nn.attention import varlen

    causal = (-1, 0)
    out_NHE = varlen.varlen_attn(
        query_NHE,
        key_NGE,
        value_NGE,
        ends,
        ends,
        longest,
        longest,
        scale=scaling,
        window_size=causal,
        **_options(varlen.varlen_attn),
    )
    assert isinstance(out_NHE, torch.Tensor)
    return out_NHE


def _by_document(
    query_NHE: torch.Tensor,
    key_NGE: torch.Tensor,
    value_NGE: torch.Tensor,
    ends: torch.Tensor,
    longest: int,
    scaling: float | None,
) -> torch.Tensor:
    """The same, a document at a time: on processors no slower than a mask."""
    query_HNE, key_GNE, value_GNE = (
        states.transpose(0, 1) for states in (query_NHE, key_NGE, value_NGE)
    )
    parts = [
        scaled_dot_product_attention(
            query_HNE[None, :, begin:end],
            key_GNE[None, :, begin:end],
            value_GNE[None, :, begin:end],
            is_causal=True,
            scale=scaling,
            enable_gqa=True,
        )
        for begin, end in pairwise(ends.tolist())
    ]
    return torch.cat(parts, 2)[0].transpose(0, 1).contiguous()


def _starts_of(
    document_starts: Sequence[IntArray], shape: tuple[int, ...]
) -> npt.NDArray[np.bool_]:
    """bool [B, T], true where a document begins."""
    is_start_BT = np.zeros((shape[0], shape[1] + 1), dtype=np.bool_)
    is_start_BT[:, 0] = True
    for row, starts in enumerate(document_starts):
        is_start_BT[row, starts] = True
    return is_start_BT[:, :-1]


def _positions(is_start_BT: npt.NDArray[np.bool_]) -> npt.NDArray[np.int64]:
    """Position ids that count from 0 in every document, int64 [B, T]."""
    index_T = np.arange(is_start_BT.shape[1])
    return index_T - np.maximum.accumulate(np.where(is_start_BT, index_T, 0), axis=1)


def _mask(is_start_BT: torch.Tensor, attention: str, dtype: torch.dtype) -> torch.Tensor:
    """[B, 1, T, T], 4-D so that transformers takes it as it is: same document, not later."""
    document_BT = is_start_BT.cumsum(1)
    allowed_BTT = (document_BT[:, :, None] == document_BT[:, None, :]).tril()
    if attention != "eager":
        return allowed_BTT[:, None]
    # The eager code adds the mask to the scores; a boolean one would add 0 and 1.
    added_BTT = torch.zeros(allowed_BTT.shape, dtype=dtype, device=is_start_BT.device)
    return added_BTT.masked_fill_(~allowed_BTT, torch.finfo(dtype).min)[:, None]
